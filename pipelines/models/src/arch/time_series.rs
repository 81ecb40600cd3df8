//! Models of time series, one file each.

pub mod patchtst;
