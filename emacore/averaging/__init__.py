"""The mathematics of averaging: schedules of decays, what they weigh, and what they filter.

Everything here is NumPy and SciPy; nothing imports torch.
"""
