"""TODO cohort."""
