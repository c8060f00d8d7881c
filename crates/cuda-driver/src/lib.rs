//! CUDA driver symbols resolved at run time.
