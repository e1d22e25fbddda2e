"""Which case to annotate next: orders of candidates, scores kept on disk, cases lent out."""
