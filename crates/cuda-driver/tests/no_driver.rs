//! Linking and starting need no driver; using it without one is an error that says so.

use cuda_driver::sys::CUresult;
use cuda_driver::{Device, ProbeError, init, probe};

#[test]
fn a_program_starts_and_says_what_is_missing() {
    match probe(0) {
        Ok(gpu) => {
            assert!(gpu.compute_capability >= cuda_driver::MIN_COMPUTE_CAPABILITY);
            assert_eq!(
                probe(1000),
                Err(ProbeError::NoSuchDevice {
                    index: 1000,
                    count: Device::count().unwrap()
                })
            );
        }
        Err(ProbeError::DriverMissing { .. }) => {
            let error = init().unwrap_err();
            assert_eq!(error, CUresult::CUDA_ERROR_NOT_INITIALIZED);
            assert!(error.to_string().contains("driver is not installed"), "{error}");
            let message = probe(0).unwrap_err().to_string();
            assert!(message.contains("libcuda.so.1"), "{message}");
        }
        Err(other) => println!("a driver without a usable GPU: {other}"),
    }
}
