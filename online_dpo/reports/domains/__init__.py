"""What people are shown of the domains of a mixture, or of an evaluation set. Nothing where there is only one."""
