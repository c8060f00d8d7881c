//! A stream: copies, the one `launch`, and graphs, in order.

use crate::error::{Error, Result, check};
use crate::gpu::{Gpu, Reporting};
use crate::graph::{Event, Graph};
use crate::memory::{DeviceBuffer, Element, SharedWords};
use bitnet_kernels::{Kernel, KernelInfo, Launch, Use};
use cuda_driver::sys::{self, CUgraph, CUresult, CUstream};
use cuda_driver::{LaunchAttribute, launch_kernel};
use std::cell::Cell;
use std::ops::Range;

/// How a kernel is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchConfig {
    /// Grid, block and shared memory.
    pub launch: Launch,
    /// The kernel may start before its predecessor ends and waits for it itself (`grid_dependency_wait`). Ignored below
    /// compute capability 9.0, where that instruction does not exist and kernels follow each other as usual.
    pub programmatic_dependent: bool,
    /// Blocks of a cluster along x; 1 for none. Needs compute capability 9.0.
    pub cluster: u32,
}

impl From<Launch> for LaunchConfig {
    fn from(launch: Launch) -> Self {
        Self {
            launch,
            programmatic_dependent: false,
            cluster: 1,
        }
    }
}

impl LaunchConfig {
    /// The same, started before its predecessor ends.
    #[must_use]
    pub const fn programmatic_dependent(mut self) -> Self {
        self.programmatic_dependent = true;
        self
    }

    /// The same, in clusters of `x` blocks.
    #[must_use]
    pub const fn cluster(mut self, x: u32) -> Self {
        self.cluster = x;
        self
    }
}

/// Work on a GPU, done in the order in which it is given.
#[derive(Debug)]
pub struct Stream {
    inner: cuda_driver::Stream,
    gpu: Gpu,
    /// Whether work goes into a graph instead of running.
    capturing: Cell<bool>,
}

/// Launches the kernel that the `with_kernel` of some parameters finds, so that it may start before its predecessor ends.
pub(crate) struct Dependent<'a>(&'a Stream);

impl<'a> Dependent<'a> {
    /// On this stream.
    ///
    /// # Safety
    /// The one kernel that this is handed may be launched: as for [`Stream::launch`], and it waits for its predecessor before it uses
    /// what others wrote.
    pub(crate) unsafe fn on(stream: &'a Stream) -> Self {
        Self(stream)
    }

    /// The launch, and what `change` makes of how.
    pub(crate) fn launch<K: Kernel>(
        self,
        kernel: &K,
        launch: Launch,
        change: impl FnOnce(LaunchConfig) -> LaunchConfig,
    ) -> Result<()> {
        let config = change(LaunchConfig::from(launch).programmatic_dependent());
        // SAFETY: the promise of whoever made this.
        unsafe { self.0.launch(kernel, config) }
    }
}

impl Use for Dependent<'_> {
    type Output = Result<()>;

    fn of<K: Kernel>(self, kernel: K, launch: Launch) -> Result<()> {
        self.launch(&kernel, launch, |config| config)
    }
}

impl Gpu {
    /// A new stream.
    ///
    /// # Errors
    /// When the device fails.
    pub fn stream(&self) -> Result<Stream> {
        self.enter()?;
        let inner = cuda_driver::Stream::new().map_err(|e| Error::cuda("making a stream", e))?;
        Ok(Stream {
            inner,
            gpu: self.clone(),
            capturing: Cell::new(false),
        })
    }
}

impl Stream {
    /// The GPU it runs on.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    pub(crate) fn raw(&self) -> CUstream {
        self.inner.as_inner()
    }

    /// Waits until all work given so far is done.
    ///
    /// # Errors
    /// When any of it failed. The message names the kernel only under [`Reporting::EachLaunch`].
    pub fn synchronize(&self) -> Result<()> {
        self.wait_for(|| match self.gpu.reporting() {
            Reporting::Late => "work on the GPU failed (report each launch to learn which kernel)".to_owned(),
            Reporting::EachLaunch => "work on the GPU failed".to_owned(),
        })
    }

    fn wait_for(&self, doing: impl FnOnce() -> String) -> Result<()> {
        self.gpu.enter()?;
        // SAFETY: the stream belongs to the context entered above.
        check(unsafe { sys::cuStreamSynchronize(self.raw()) }, doing)
    }

    /// Launches a kernel.
    ///
    /// # Errors
    /// When the GPU cannot launch it like this, or (under [`Reporting::EachLaunch`]) when it fails.
    ///
    /// # Safety
    /// - The kernel's own contract holds: lengths, alignment, aliasing.
    /// - The buffers that its parameters point to live until its work is done, and until every graph that recorded this
    ///   launch is gone.
    pub unsafe fn launch<K: Kernel>(&self, kernel: &K, config: impl Into<LaunchConfig>) -> Result<()> {
        let config = config.into();
        let function = self.gpu.function(&K::INFO)?;
        self.check_launch(&K::INFO, &config, function.static_shared_bytes)?;
        self.gpu.enter()?;
        let overlaps = self.gpu.properties().compute_capability >= (9, 0);
        let dependent =
            (config.programmatic_dependent && overlaps).then(LaunchAttribute::programmatic_dependent);
        let cluster = (config.cluster > 1).then(|| LaunchAttribute::cluster(config.cluster));
        let both = [dependent, cluster];
        let mut attributes = [LaunchAttribute::cluster(1); 2];
        let mut n_attributes = 0;
        for attribute in both.into_iter().flatten() {
            attributes[n_attributes] = attribute;
            n_attributes += 1;
        }
        let launch = cuda_driver::Launch {
            grid: config.launch.grid,
            block: config.launch.block,
            shared_bytes: config.launch.shared_bytes,
            stream: self.raw(),
            attributes: &attributes[..n_attributes],
        };
        let args = kernel.args();
        let doing = || format!("kernel `{}`", K::INFO.name);
        // SAFETY: function and stream are this context's; `args` has the parameters of this kernel by the contract of
        // `Kernel`; the caller vouches for their values.
        let code = unsafe { launch_kernel(function.handle, &launch, args.as_ref()) };
        check(code, doing)?;
        if self.gpu.reporting() == Reporting::EachLaunch && !self.capturing.get() {
            self.wait_for(doing)?;
        }
        Ok(())
    }

    /// Compares a launch with the kernel's and the GPU's limits, so that the error says which one it breaks.
    fn check_launch(
        &self,
        kernel: &KernelInfo,
        config: &LaunchConfig,
        static_shared_bytes: u32,
    ) -> Result<()> {
        const MAX_GRID: [u32; 3] = [0x7fff_ffff, 0xffff, 0xffff];
        let Launch {
            grid,
            block,
            shared_bytes,
        } = config.launch;
        let properties = self.gpu.properties();
        let refuse = |reason: String| {
            Err(Error::Launch {
                kernel: kernel.name,
                reason,
            })
        };
        if (0..3).any(|axis| grid[axis] == 0 || grid[axis] > MAX_GRID[axis]) {
            return refuse(format!(
                "a grid of {grid:?} blocks; the limits are 1 to {MAX_GRID:?}"
            ));
        }
        if (0..3).any(|axis| block[axis] == 0 || block[axis] > kernel.block[axis]) {
            return refuse(format!(
                "blocks of {block:?} threads; it takes 1 to {:?}",
                kernel.block
            ));
        }
        let shared = shared_bytes.saturating_add(static_shared_bytes);
        if shared > properties.shared_bytes_per_block {
            return refuse(format!(
                "{shared} bytes of shared memory a block; {} has {}",
                properties.name, properties.shared_bytes_per_block
            ));
        }
        if config.cluster == 0 || !grid[0].is_multiple_of(config.cluster) {
            return refuse(format!(
                "clusters of {} blocks in a grid of {}",
                config.cluster, grid[0]
            ));
        }
        if config.cluster > 1 && properties.compute_capability < (9, 0) {
            return refuse(format!(
                "clusters need compute capability 9.0; {} has less",
                properties.name
            ));
        }
        Ok(())
    }

    /// Copies `source` to the elements of `target` from `start`, and waits for it.
    ///
    /// # Errors
    /// When it does not fit, or the device fails.
    pub fn upload<T: Element>(&self, target: &DeviceBuffer<T>, start: usize, source: &[T]) -> Result<()> {
        let address = target.address_of("copying to the GPU", start..start.saturating_add(source.len()))?;
        if source.is_empty() {
            return Ok(());
        }
        self.not_capturing("copying to the GPU")?;
        self.gpu.enter()?;
        // SAFETY: the range was checked; the source is borrowed until the wait below is over.
        let code = unsafe {
            sys::cuMemcpyHtoDAsync_v2(address, source.as_ptr().cast(), size_of_val(source), self.raw())
        };
        check(code, || "copying to the GPU")?;
        // Whatever this returns, the copy is over: a stream that cannot be waited for runs nothing any more.
        self.synchronize()
    }

    /// Copies words `from` of pinned memory to the elements of `target` from `start`, after all work given so far, and does not
    /// wait for it. What the words are when the copy runs is what is copied.
    ///
    /// # Errors
    /// When a range is outside its memory, or the device fails.
    pub(crate) fn upload_pinned(
        &self,
        target: &DeviceBuffer<u32>,
        start: usize,
        source: &SharedWords,
        from: Range<usize>,
    ) -> Result<()> {
        const WHAT: &str = "copying to the GPU";
        let to = target.address_of(WHAT, start..start.saturating_add(from.len()))?;
        let Some(words) = source.get(from.clone()) else {
            return Err(Error::Range {
                what: WHAT,
                start: from.start,
                end: from.end,
                len: source.len(),
            });
        };
        if words.is_empty() {
            return Ok(());
        }
        self.not_capturing(WHAT)?;
        self.gpu.enter()?;
        // SAFETY: both ranges were checked. The driver frees neither memory while work on it is under way, and the words are
        // atomic: that the host may store to them meanwhile is no data race.
        let code =
            unsafe { sys::cuMemcpyHtoDAsync_v2(to, words.as_ptr().cast(), size_of_val(words), self.raw()) };
        check(code, || WHAT)
    }

    /// A new buffer with the elements of `source`; `what` is for the error message.
    ///
    /// # Errors
    /// When memory is short, or the device fails.
    pub fn upload_new<T: Element>(&self, what: &str, source: &[T]) -> Result<DeviceBuffer<T>> {
        let buffer = self.gpu.alloc(what, source.len())?;
        self.upload(&buffer, 0, source)?;
        Ok(buffer)
    }

    /// Copies the elements of `source` from `start` to `target`, after all work given so far.
    ///
    /// # Errors
    /// When `source` has fewer, or that work or the copy failed.
    pub fn download<T: Element>(
        &self,
        source: &DeviceBuffer<T>,
        start: usize,
        target: &mut [T],
    ) -> Result<()> {
        let address = source.address_of("copying from the GPU", start..start.saturating_add(target.len()))?;
        if target.is_empty() {
            return Ok(());
        }
        self.not_capturing("copying from the GPU")?;
        self.gpu.enter()?;
        // SAFETY: the range was checked; the target is borrowed until the wait below is over, and any bits are a `T`.
        let code = unsafe {
            sys::cuMemcpyDtoHAsync_v2(
                target.as_mut_ptr().cast(),
                address,
                size_of_val(target),
                self.raw(),
            )
        };
        check(code, || "copying from the GPU")?;
        self.synchronize()
    }

    /// All elements of `source`, after all work given so far.
    ///
    /// # Errors
    /// When that work or the copy failed.
    pub fn download_all<T: Element + Default>(&self, source: &DeviceBuffer<T>) -> Result<Vec<T>> {
        let mut target = vec![T::default(); source.len()];
        self.download(source, 0, &mut target)?;
        Ok(target)
    }

    /// Copies `len` elements of `source` from `source_start` to `target` from `target_start`, on the device.
    ///
    /// # Errors
    /// When a range is outside its buffer, or the device fails.
    pub fn copy<T: Element>(
        &self,
        target: &DeviceBuffer<T>,
        target_start: usize,
        source: &DeviceBuffer<T>,
        source_start: usize,
        len: usize,
    ) -> Result<()> {
        const WHAT: &str = "copying on the GPU";
        let to = target.address_of(WHAT, target_start..target_start.saturating_add(len))?;
        let from = source.address_of(WHAT, source_start..source_start.saturating_add(len))?;
        if len == 0 {
            return Ok(());
        }
        // A graph could be replayed when the buffers are gone.
        self.not_capturing(WHAT)?;
        self.gpu.enter()?;
        // SAFETY: both ranges were checked; a buffer is freed only after the work on it.
        let code = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, len * size_of::<T>(), self.raw()) };
        check(code, || WHAT)
    }

    /// Sets every byte of `target`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn fill_bytes<T: Element>(&self, target: &DeviceBuffer<T>, byte: u8) -> Result<()> {
        let address = target.address_of("filling GPU memory", 0..target.len())?;
        if target.is_empty() {
            return Ok(());
        }
        // A graph could be replayed when the buffer is gone.
        self.not_capturing("filling GPU memory")?;
        self.gpu.enter()?;
        let bytes = target.size_bytes() as usize;
        // SAFETY: the whole buffer; any bits are a `T`.
        let code = unsafe { sys::cuMemsetD8Async(address, byte, bytes, self.raw()) };
        check(code, || "filling GPU memory")
    }

    /// Marks this point of the stream.
    ///
    /// # Errors
    /// When the device fails.
    pub fn record(&self, event: &Event) -> Result<()> {
        // A graph could be replayed when the event is gone.
        self.not_capturing("recording an event")?;
        self.gpu.enter()?;
        event
            .inner
            .record(&self.inner)
            .map_err(|e| Error::cuda("recording an event", e))
    }

    /// Lets what is given to this stream from now on wait for what `other` was given so far, with `mark` between them. While `other` is
    /// being recorded, what this stream is given is recorded with it, until `other` follows it in turn.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn follow(&self, other: &Self, mark: &Event) -> Result<()> {
        self.gpu.enter()?;
        (mark.inner.record(&other.inner))
            .and_then(|()| self.inner.wait(&mark.inner))
            .map_err(|e| Error::cuda("letting streams wait for each other", e))?;
        self.capturing.set(other.capturing.get());
        Ok(())
    }

    /// Records what `work` gives to this stream, without running it.
    ///
    /// # Errors
    /// Those of `work`; and when it does something that cannot be recorded, such as waiting.
    pub fn capture(&self, work: impl FnOnce(&Self) -> Result<()>) -> Result<Graph> {
        self.not_capturing("recording a graph")?;
        self.gpu.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream belongs to the context entered above.
        let code = unsafe { sys::cuStreamBeginCapture_v2(self.raw(), mode) };
        check(code, || "recording a graph")?;
        let capture = Capture::begun(self);
        let outcome = work(self);
        let (ended, graph) = capture.end();
        let graph = Graph::instantiate(&self.gpu, graph);
        outcome?;
        check(ended, || "recording a graph")?;
        graph
    }

    /// Runs a graph.
    ///
    /// # Errors
    /// When the device fails.
    pub fn replay(&self, graph: &Graph) -> Result<()> {
        self.gpu.enter()?;
        // SAFETY: whoever recorded its launches vouched that their buffers outlive the graph.
        let code = unsafe { sys::cuGraphLaunch(graph.exec(), self.raw()) };
        check(code, || "running a graph")?;
        if self.gpu.reporting() == Reporting::EachLaunch {
            self.wait_for(|| format!("a graph of {} nodes", graph.n_nodes()))?;
        }
        Ok(())
    }

    fn not_capturing(&self, what: &str) -> Result<()> {
        if self.capturing.get() {
            return Err(Error::cuda(
                format!("{what} while a graph is being recorded"),
                CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
            ));
        }
        Ok(())
    }
}

/// A recording under way. It ends however the work that is recorded ends, a panic included.
struct Capture<'a> {
    stream: &'a Stream,
    is_over: bool,
}

impl<'a> Capture<'a> {
    /// Takes up what the driver has begun on this stream.
    fn begun(stream: &'a Stream) -> Self {
        stream.capturing.set(true);
        Self {
            stream,
            is_over: false,
        }
    }

    /// Ends it: the driver's answer, and the recording, null where it failed.
    fn end(mut self) -> (CUresult, CUgraph) {
        self.finish()
    }

    fn finish(&mut self) -> (CUresult, CUgraph) {
        self.is_over = true;
        self.stream.capturing.set(false);
        let mut graph = std::ptr::null_mut();
        // SAFETY: capture began on this stream before this value was made, and ends once.
        let code = unsafe { sys::cuStreamEndCapture(self.stream.raw(), &raw mut graph) };
        (code, graph)
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let (_, graph) = self.finish();
        if !graph.is_null() {
            // SAFETY: a recording of ours that nobody has.
            let _ = unsafe { sys::cuGraphDestroy(graph) };
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // The stream is destroyed next, which needs its context.
        let _ = self.gpu.enter();
    }
}
