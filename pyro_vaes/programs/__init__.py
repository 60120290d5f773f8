"""Reading a Pyro program: its sites, plates, masks, scales and units; running one without leaving a trace."""
