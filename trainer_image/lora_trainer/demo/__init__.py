"""Web page (Streamlit) to generate images with adapters, view jobs and review captions."""
