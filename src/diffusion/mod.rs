//! The mathematics of sampling.
