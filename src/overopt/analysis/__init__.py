"""Tables in; laws, figures and the report out. No torch."""
