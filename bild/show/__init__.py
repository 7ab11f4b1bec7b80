"""What people look at: tables, plots, traces, pages."""
