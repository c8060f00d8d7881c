//! Devices, contexts, streams and events as values that give back what they hold.

use std::ffi::{CStr, c_int};
use std::ptr::null_mut;

use crate::sys::{self, CUcontext, CUdevice, CUevent, CUresult, CUstream};

pub use sys::CUdevice_attribute as DeviceAttribute;

/// A GPU of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device(CUdevice);

/// Starts the driver; any number of times.
///
/// # Errors
/// When there is no driver, or it does not start.
pub fn init() -> Result<(), CUresult> {
    // SAFETY: 0 is the only value that the flags may have.
    unsafe { sys::cuInit(0) }.result()
}

/// 1000 * major + 10 * minor of the CUDA that the driver supports.
///
/// # Errors
/// When there is no driver.
pub fn driver_version() -> Result<i32, CUresult> {
    let mut version = 0;
    // SAFETY: a valid place.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result()?;
    Ok(version)
}

impl Device {
    /// How many there are.
    ///
    /// # Errors
    /// When the driver was not started.
    pub fn count() -> Result<u32, CUresult> {
        let mut count = 0;
        // SAFETY: a valid place.
        unsafe { sys::cuDeviceGetCount(&raw mut count) }.result()?;
        Ok(count.unsigned_abs())
    }

    /// The one of this index.
    ///
    /// # Errors
    /// When there is none, or the driver was not started.
    pub fn get(index: u32) -> Result<Self, CUresult> {
        let index = c_int::try_from(index).map_err(|_| CUresult::CUDA_ERROR_INVALID_DEVICE)?;
        let mut device = 0;
        // SAFETY: a valid place.
        unsafe { sys::cuDeviceGet(&raw mut device, index) }.result()?;
        Ok(Self(device))
    }

    /// Its name.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn name(self) -> Result<String, CUresult> {
        let mut name = [0u8; 256];
        // SAFETY: the place has the length that is given.
        unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as c_int, self.0) }.result()?;
        let name = CStr::from_bytes_until_nul(&name).map(CStr::to_string_lossy);
        Ok(name.unwrap_or_default().into_owned())
    }

    /// One of its properties.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn attribute(self, attribute: DeviceAttribute) -> Result<i32, CUresult> {
        let mut value = 0;
        // SAFETY: a valid place, and a device of the driver's.
        unsafe { sys::cuDeviceGetAttribute(&raw mut value, attribute, self.0) }.result()?;
        Ok(value)
    }

    /// Bytes of its memory.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn total_memory(self) -> Result<usize, CUresult> {
        let mut bytes = 0;
        // SAFETY: as above.
        unsafe { sys::cuDeviceTotalMem_v2(&raw mut bytes, self.0) }.result()?;
        Ok(bytes)
    }
}

/// A share in the primary context of a device, given back when it is dropped.
#[derive(Debug)]
pub struct Context {
    inner: CUcontext,
    device: Device,
}

// SAFETY: a context is an identifier that the driver lets any thread make current.
unsafe impl Send for Context {}
// SAFETY: as above; it is never written through.
unsafe impl Sync for Context {}

impl Context {
    /// Takes a share, and makes the context the calling thread's.
    ///
    /// # Errors
    /// When the device cannot have one.
    pub fn new(device: Device) -> Result<Self, CUresult> {
        let mut inner = null_mut();
        // SAFETY: a valid place, and a device of the driver's.
        unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut inner, device.0) }.result()?;
        let context = Self { inner, device };
        context.set_current()?;
        Ok(context)
    }

    /// Makes it the calling thread's.
    ///
    /// # Errors
    /// When the device failed.
    pub fn set_current(&self) -> Result<(), CUresult> {
        // SAFETY: the share that is held keeps the context alive.
        unsafe { sys::cuCtxSetCurrent(self.inner) }.result()
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: taken once in `new`. A failure has nowhere to go.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device.0) };
    }
}

/// A stream of the context that is current when it is made. That must be current, too, when it is dropped.
#[derive(Debug)]
pub struct Stream(CUstream);

// SAFETY: a handle that the driver lets any thread use.
unsafe impl Send for Stream {}

impl Stream {
    /// Makes one that waits for the default stream.
    ///
    /// # Errors
    /// When no context is current, or the device failed.
    pub fn new() -> Result<Self, CUresult> {
        let mut stream = null_mut();
        // SAFETY: a valid place; 0 are the default flags, and the default priority.
        unsafe { sys::cuStreamCreateWithPriority(&raw mut stream, 0, 0) }.result()?;
        Ok(Self(stream))
    }

    /// Lets what is given to this stream from now on wait for what `event` marks.
    ///
    /// # Errors
    /// When they are of different contexts, or the device failed.
    pub fn wait(&self, event: &Event) -> Result<(), CUresult> {
        // SAFETY: both handles live as long as the values; 0 are the default flags.
        unsafe { sys::cuStreamWaitEvent(self.0, event.0, 0) }.result()
    }

    /// The driver's handle.
    #[must_use]
    pub fn as_inner(&self) -> CUstream {
        self.0
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made in `new` and destroyed once; the driver lets its work end first.
        let _ = unsafe { sys::cuStreamDestroy_v2(self.0) };
    }
}

/// An event of the context that is current when it is made. That must be current, too, when it is dropped.
#[derive(Debug)]
pub struct Event(CUevent);

// SAFETY: a handle that the driver lets any thread use.
unsafe impl Send for Event {}

impl Event {
    /// Makes one that takes times.
    ///
    /// # Errors
    /// When no context is current, or the device failed.
    pub fn new() -> Result<Self, CUresult> {
        let mut event = null_mut();
        // SAFETY: a valid place; 0 are the default flags.
        unsafe { sys::cuEventCreate(&raw mut event, 0) }.result()?;
        Ok(Self(event))
    }

    /// Marks what has been given to `stream` so far.
    ///
    /// # Errors
    /// When they are of different contexts, or the device failed.
    pub fn record(&self, stream: &Stream) -> Result<(), CUresult> {
        // SAFETY: both handles live as long as the values.
        unsafe { sys::cuEventRecord(self.0, stream.0) }.result()
    }

    /// Waits for what it marks.
    ///
    /// # Errors
    /// When that failed.
    pub fn synchronize(&self) -> Result<(), CUresult> {
        // SAFETY: the handle lives as long as the value.
        unsafe { sys::cuEventSynchronize(self.0) }.result()
    }

    /// Milliseconds from `start` to this one.
    ///
    /// # Errors
    /// When one of them was not recorded, or is not over.
    pub fn elapsed_ms(&self, start: &Self) -> Result<f32, CUresult> {
        let mut milliseconds = 0.0;
        // SAFETY: a valid place, and two events that live.
        unsafe { sys::cuEventElapsedTime(&raw mut milliseconds, start.0, self.0) }.result()?;
        Ok(milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made in `new` and destroyed once.
        let _ = unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}
