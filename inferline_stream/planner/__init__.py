"""Search for the cheapest plan that meets the SLO; explains itself. Pure."""
