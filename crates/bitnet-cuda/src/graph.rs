//! Recorded work, and marks in time.

use crate::error::{Error, Result, check};
use crate::gpu::Gpu;
use cuda_driver::sys::{self, CUgraph, CUgraphExec};

/// Work recorded by [`crate::Stream::capture`], ready to run again and again.
#[derive(Debug)]
pub struct Graph {
    exec: CUgraphExec,
    n_nodes: usize,
    gpu: Gpu,
}

// SAFETY: a handle that the driver lets any thread use, one at a time: `replay` borrows it, and the driver orders
// launches of one graph.
unsafe impl Send for Graph {}

impl Graph {
    /// Makes `graph` runnable and destroys the recording. A null recording, of a capture that failed, is an error.
    pub(crate) fn instantiate(gpu: &Gpu, graph: CUgraph) -> Result<Self> {
        if graph.is_null() {
            return Err(Error::Request("recording a graph gave none".to_owned()));
        }
        let (mut exec, mut n_nodes) = (std::ptr::null_mut(), 0);
        // SAFETY: `graph` is a recording of ours; a null array asks for the number of nodes alone.
        let code = unsafe {
            let _ = sys::cuGraphGetNodes(graph, std::ptr::null_mut(), &raw mut n_nodes);
            let code = sys::cuGraphInstantiateWithFlags(&raw mut exec, graph, 0);
            let _ = sys::cuGraphDestroy(graph);
            code
        };
        check(code, || format!("preparing a graph of {n_nodes} nodes"))?;
        Ok(Self {
            exec,
            n_nodes,
            gpu: gpu.clone(),
        })
    }

    /// Kernels and copies in it.
    #[must_use]
    pub fn n_nodes(&self) -> usize {
        self.n_nodes
    }

    pub(crate) fn exec(&self) -> CUgraphExec {
        self.exec
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: instantiated above and destroyed once; the driver lets a running graph end first.
            let _ = unsafe { sys::cuGraphExecDestroy(self.exec) };
        }
    }
}

/// A mark in a stream, for timing.
#[derive(Debug)]
pub struct Event {
    pub(crate) inner: cuda_driver::Event,
    gpu: Gpu,
}

impl Gpu {
    /// A new event, recorded nowhere yet.
    ///
    /// # Errors
    /// When the device fails.
    pub fn event(&self) -> Result<Event> {
        self.enter()?;
        let inner = cuda_driver::Event::new().map_err(|e| Error::cuda("making an event", e))?;
        Ok(Event {
            inner,
            gpu: self.clone(),
        })
    }
}

impl Event {
    /// Waits until the device has passed this mark; at once where it was never recorded.
    ///
    /// # Errors
    /// When work before it failed.
    pub fn wait(&self) -> Result<()> {
        self.gpu.enter()?;
        self.inner
            .synchronize()
            .map_err(|e| Error::cuda("waiting for the GPU", e))
    }

    /// Microseconds from `start` to this event; waits for it.
    ///
    /// # Errors
    /// When one of them was not recorded, or work before them failed.
    pub fn elapsed_us(&self, start: &Self) -> Result<f64> {
        self.gpu.enter()?;
        let failed = |e| Error::cuda("timing work on the GPU", e);
        self.inner.synchronize().map_err(failed)?;
        Ok(f64::from(self.inner.elapsed_ms(&start.inner).map_err(failed)?) * 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // The event is destroyed next, which needs its context.
        let _ = self.gpu.enter();
    }
}
