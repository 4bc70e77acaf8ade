"""What the controller decides: by the policy, by planning runs, by people."""
