"""What a model's layers see and cost: from one run of its forward to a frozen `Report`."""
