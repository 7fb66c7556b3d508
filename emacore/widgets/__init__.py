"""Controls that several pages share; the only part of emacore that imports streamlit.

Every control is bound to the link and keeps its value when the page changes; see :data:`emacore.widgets.page.BOUND`.
"""
