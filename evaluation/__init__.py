"""Numbers about pictures: metrics, protocols, comparisons of folders, reports."""
