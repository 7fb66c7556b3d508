"""Controls that several pages share; the only part of emacore that imports streamlit.

Every control is bound to the URL and outlives a page change; both come with Streamlit.
"""
