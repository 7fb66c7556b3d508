"""Altair charts: tables in, charts out.  No streamlit, no computation beyond thinning for the eye."""
