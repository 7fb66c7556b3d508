"""Altair charts: tables in, figures out.  No streamlit, no computation beyond thinning for the eye."""
