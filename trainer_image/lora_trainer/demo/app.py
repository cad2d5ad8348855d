"""Script of the page. Streamlit runs it from start to end at every interaction."""

from __future__ import annotations

import streamlit as st

from lora_trainer.demo import generate, jobs, new_job, review
from lora_trainer.demo.shared import settings, show_errors, store

# The pages use no icons of Streamlit, because browsers would fetch their font from the internet.
st.set_page_config(page_title="LoRA", layout="wide")
with show_errors():  # errors of the configuration stop every page here
    settings()
    store()
first = [st.Page(new_job.page, title="New job", url_path="new")] if settings().starts_jobs else []
st.navigation(
    [
        *first,
        st.Page(generate.page, title="Generate", url_path="generate", default=True),
        st.Page(jobs.page, title="Jobs", url_path="jobs"),
        st.Page(review.page, title="Captions", url_path="captions"),
    ]
).run()
