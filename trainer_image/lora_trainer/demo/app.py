"""The script that Streamlit runs, at every click from its first line to its last."""

from __future__ import annotations

import streamlit as st

from lora_trainer.demo import draw, jobs, review
from lora_trainer.demo.shared import plainly, settings, store

st.set_page_config(page_title="LoRA", page_icon=":material/brush:", layout="wide")
with plainly():
    settings()
    store()
st.navigation(
    [
        st.Page(draw.page, title="Draw", icon=":material/brush:", url_path="draw", default=True),
        st.Page(jobs.page, title="Jobs", icon=":material/grid_view:", url_path="jobs"),
        st.Page(review.page, title="Captions", icon=":material/edit_note:", url_path="captions"),
    ]
).run()
