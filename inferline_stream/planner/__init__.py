"""Search for the cheapest plan that meets the SLO, and why it is that one. Pure: values in, values out."""
