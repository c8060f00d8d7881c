//! The one place where a kernel's name, parameters and block size meet: the [`kernel!`] macro makes the device entry and
//! the host's typed parameters from one declaration.

#[cfg(not(target_arch = "nvptx64"))]
use core::ffi::c_void;
use core::marker::PhantomData;

/// What the host must know of a kernel before it launches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelInfo {
    /// Name of the PTX entry.
    pub name: &'static str,
    /// Most threads of a block: x, y, z; a launch may use fewer.
    pub block: [u32; 3],
    /// Blocks that must fit on a multiprocessor at once, which limits registers (`.minnctapersm`); 0 sets no limit.
    pub min_blocks: u32,
    /// Lowest compute capability that has this kernel: 80, or 90 for one that needs Hopper.
    pub min_sm: u32,
    /// Whether only GPUs of exactly that capability have it: `sm_90a`, whose kernels are in a module of their own.
    pub is_exact: bool,
    /// Sizes of the parameters in bytes, in order.
    pub param_sizes: &'static [usize],
}

/// Grid and shared memory of one launch. Kernels compute it from their parameters in a `launch` method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks: x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block: x, y, z; no axis above [`KernelInfo::block`].
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory of a block.
    pub shared_bytes: u32,
}

/// A kernel the host can launch: a struct of its parameters.
///
/// # Safety
/// `INFO` describes an entry of the PTX modules and `args` points at its parameters, in order. Only the `kernel!` macro
/// implements this.
pub unsafe trait Kernel: Copy {
    /// Name, block size and parameter sizes.
    const INFO: KernelInfo;
    /// Pointers to the parameters.
    #[cfg(not(target_arch = "nvptx64"))]
    type Args: AsRef<[*const c_void]>;
    /// Pointers to the fields of `self`, in parameter order; valid while `self` is borrowed.
    #[cfg(not(target_arch = "nvptx64"))]
    fn args(&self) -> Self::Args;
    /// The kernel's body, for one lane of the emulator.
    ///
    /// # Safety
    /// Only a lane of [`crate::emulator::Emulator`] may call this.
    #[cfg(feature = "emulator")]
    unsafe fn run(self);
}

/// What is done with a kernel that the `with_kernel` of its parameters has found.
#[cfg(not(target_arch = "nvptx64"))]
pub trait Use {
    /// What comes of it.
    type Output;
    /// Does it; the kernel has the launch.
    fn of<K: Kernel + 'static>(self, kernel: K, launch: Launch) -> Self::Output;
}

/// Kernels of all these lists.
pub(crate) const fn count(lists: &[&[KernelInfo]]) -> usize {
    let (mut count, mut list) = (0, 0);
    while list < lists.len() {
        count += lists[list].len();
        list += 1;
    }
    count
}

/// The lists, one after the other; `N` is their [`count`].
pub(crate) const fn concat<const N: usize>(lists: &[&[KernelInfo]]) -> [KernelInfo; N] {
    let mut all = [lists[0][0]; N];
    let (mut at, mut list) = (0, 0);
    while list < lists.len() {
        let mut i = 0;
        while i < lists[list].len() {
            all[at] = lists[list][i];
            at += 1;
            i += 1;
        }
        list += 1;
    }
    all
}

/// Address of `T`s in device memory; the host cannot read through it.
///
/// On the device its methods are loads and stores; in the emulator the same methods are checked.
#[derive(Debug)]
#[repr(transparent)]
pub struct Global<T> {
    /// A pointer on the device, where the compiler derives the address space from it; a number on the host.
    #[cfg(target_arch = "nvptx64")]
    pub(crate) pointer: *mut T,
    #[cfg(not(target_arch = "nvptx64"))]
    address: u64,
    #[cfg(not(target_arch = "nvptx64"))]
    element: PhantomData<fn() -> T>,
    #[cfg(target_arch = "nvptx64")]
    element: PhantomData<*mut T>,
}

impl<T> Clone for Global<T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Global<T> {}

impl<T> Global<T> {
    /// The address a device allocation returned.
    #[cfg(not(target_arch = "nvptx64"))]
    #[must_use]
    pub const fn new(address: u64) -> Self {
        Self {
            address,
            element: PhantomData,
        }
    }

    /// The address in bytes.
    #[inline(always)]
    #[must_use]
    pub fn address(self) -> u64 {
        #[cfg(target_arch = "nvptx64")]
        return self.pointer as u64;
        #[cfg(not(target_arch = "nvptx64"))]
        return self.address;
    }

    /// The address of element `index`.
    #[inline(always)]
    #[must_use]
    pub fn offset(self, index: usize) -> Self {
        #[cfg(target_arch = "nvptx64")]
        return Self {
            pointer: self.pointer.wrapping_add(index),
            element: PhantomData,
        };
        #[cfg(not(target_arch = "nvptx64"))]
        return Self::new(
            self.address
                .wrapping_add(index.wrapping_mul(size_of::<T>()) as u64),
        );
    }

    /// The same address, seen as `U`s.
    #[inline(always)]
    #[must_use]
    pub fn cast<U>(self) -> Global<U> {
        #[cfg(target_arch = "nvptx64")]
        return Global {
            pointer: self.pointer.cast(),
            element: PhantomData,
        };
        #[cfg(not(target_arch = "nvptx64"))]
        return Global::new(self.address);
    }
}

/// Whether it is one like `"sm_90a"`.
pub(crate) const fn is_exact(arch: &str) -> bool {
    matches!(arch.as_bytes(), [.., b'a'])
}

/// `"sm_90"` and `"sm_90a"` to 90.
pub(crate) const fn sm_number(arch: &str) -> u32 {
    let bytes = arch.as_bytes();
    let (mut number, mut i) = (0, 3);
    while i < bytes.len() && bytes[i].is_ascii_digit() {
        number = number * 10 + (bytes[i] - b'0') as u32;
        i += 1;
    }
    number
}

/// Declares the parameters of kernels: a struct, the sizes of its fields, and on the host pointers to them.
macro_rules! parameters {
    ($(#[$meta:meta])* pub struct $Params:ident { $( $(#[$field_meta:meta])* pub $field:ident: $type:ty, )* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug)]
        pub struct $Params { $( $(#[$field_meta])* pub $field: $type, )* }

        impl $Params {
            const SIZES: &'static [usize] = &[$( size_of::<$type>() ),*];

            #[cfg(not(target_arch = "nvptx64"))]
            fn pointers(&self) -> [*const core::ffi::c_void; Self::SIZES.len()] {
                [$( (&raw const self.$field).cast() ),*]
            }
        }
    };
}

/// Leaves an entry to the modules of its architecture: those of `sm_90a` have no others.
macro_rules! in_module {
    ([sm_90a] $($entry:tt)+) => { #[cfg(sm_90a)] $($entry)+ };
    ([sm_90] $($entry:tt)+) => { #[cfg(all(sm_90, not(sm_90a)))] $($entry)+ };
    ([] $($entry:tt)+) => { #[cfg(not(sm_90a))] $($entry)+ };
}

/// Makes `$Kernel`, whose `parameters` are `$Params`, a [`Kernel`], and on the device an entry with flat parameters (a struct by value
/// would cost the pointers their address space) that rebuilds the struct and calls `body`, an `unsafe fn($Params)`.
macro_rules! entry {
    (
        $name:ident, $Kernel:ident, $block:expr, [$(min_blocks = $min_blocks:expr,)? $(arch = $arch:ident,)?], $body:path;
        $Params:ident { $( $(#[$field_meta:meta])* pub $field:ident: $type:ty, )* }
    ) => {
        // SAFETY: name, order and types come from one declaration.
        unsafe impl $crate::Kernel for $Kernel {
            const INFO: $crate::KernelInfo = $crate::KernelInfo {
                name: stringify!($name),
                block: $block,
                min_blocks: 0 $( + $min_blocks )?,
                min_sm: {
                    let arch = "sm_80";
                    $( let _ = arch; let arch = stringify!($arch); )?
                    $crate::abi::sm_number(arch)
                },
                is_exact: {
                    let arch = "sm_80";
                    $( let _ = arch; let arch = stringify!($arch); )?
                    $crate::abi::is_exact(arch)
                },
                param_sizes: $Params::SIZES,
            };
            #[cfg(not(target_arch = "nvptx64"))]
            type Args = [*const core::ffi::c_void; $Params::SIZES.len()];
            #[cfg(not(target_arch = "nvptx64"))]
            fn args(&self) -> Self::Args {
                self.parameters().pointers()
            }
            #[cfg(feature = "emulator")]
            unsafe fn run(self) {
                // SAFETY: the emulator checks every access the body makes.
                unsafe { $body(*self.parameters()) }
            }
        }

        // Names the body in the modules that leave the entry out, where it would otherwise count as dead code.
        #[cfg(target_arch = "nvptx64")]
        const _: unsafe fn($Params) = $body;

        in_module! { [$($arch)?]
            #[cfg(target_arch = "nvptx64")]
            #[unsafe(no_mangle)]
            unsafe extern "ptx-kernel" fn $name($( $field: $type ),*) {
                // SAFETY: the launch upholds the contract of the parameters.
                unsafe { $body($Params { $( $field ),* }) }
            }
        }
    };
}

/// Lists kernels for the crate: those of these lists.
macro_rules! kernels_of {
    ($($list:expr),+ $(,)?) => {{
        const LISTS: &[&[$crate::KernelInfo]] = &[$( $list ),+];
        &$crate::abi::concat::<{ $crate::abi::count(LISTS) }>(LISTS)
    }};
}

/// Declares a kernel: `name, block = [x, y, z], min_blocks = n, arch = sm_90, body = path; pub struct Params { .. }`, of which
/// `min_blocks` and `arch` may be left out. On the host this is the struct and its [`Kernel`], on the device an entry.
macro_rules! kernel {
    (
        $(#[$meta:meta])*
        $name:ident, block = $block:expr, $(min_blocks = $min_blocks:expr,)? $(arch = $arch:ident,)? body = $body:path;
        pub struct $Params:ident $fields:tt
    ) => {
        parameters! { $(#[$meta])* pub struct $Params $fields }

        #[cfg(not(target_arch = "nvptx64"))]
        impl $Params {
            fn parameters(&self) -> &Self {
                self
            }
        }

        entry! {
            $name, $Params, $block, [$(min_blocks = $min_blocks,)? $(arch = $arch,)?], $body;
            $Params $fields
        }
    };
}

/// Declares the kernels of a file, one after the other as [`kernel!`] takes them, and lists them for the crate.
macro_rules! kernels {
    ($(
        $(#[$meta:meta])*
        $name:ident, block = $block:expr, $(min_blocks = $min_blocks:expr,)? $(arch = $arch:ident,)? body = $body:path;
        pub struct $Params:ident $fields:tt
    )+) => {
        $(
            kernel! {
                $(#[$meta])*
                $name, block = $block, $(min_blocks = $min_blocks,)? $(arch = $arch,)? body = $body;
                pub struct $Params $fields
            }
        )+

        /// The kernels of this file.
        pub(crate) const INFOS: &[$crate::KernelInfo] = &[$( <$Params as $crate::Kernel>::INFO ),+];
    };
}

/// Declares kernels that have their parameters in common: the struct, what tells one from another (its *key*), and a row for each
/// kernel: `[what kernel! takes of min_blocks and arch] name, Kernel, "what it is for", [generics], [key];`. Where generics and key
/// say the same, a macro of the family's own writes them both.
///
/// `each Key` is for keys that all have a kernel, which the compiler checks (a row may end in `or [another key]`), `some Key` for
/// others. Either gives the struct a `with_kernel`, the only place that chooses, and lists the kernels for the crate. The module has
/// their `threads(key)`, `launch(key, &struct)` and `device::run::<generics>`.
macro_rules! family {
    (
        $(#[$meta:meta])*
        pub struct $Params:ident $fields:tt
        $which:ident $Key:ty;
        $( [$($options:tt)*] $($name:ident, $Kernel:ident, $what:expr, $generics:tt, $key:tt $(or $other:tt)?;)+ )+
    ) => {
        parameters! { $(#[$meta])* pub struct $Params $fields }

        impl $Params {
            /// The kernels that take these parameters.
            pub(crate) const INFOS: &'static [$crate::KernelInfo] = &[$($( <$Kernel as $crate::Kernel>::INFO ),+),+];
        }

        family! { @choose $which $Params, $Key, $($( $Kernel $key $(or $other)?; )+)+ }

        $( family! { @group [$($options)*] $Params $fields $( $name, $Kernel, $what, $generics, $key; )+ } )+
    };
    (@group $options:tt $Params:ident $fields:tt $($name:ident, $Kernel:ident, $what:expr, $generics:tt, $key:tt;)+) => {
        $( family! { @kernel $options $name, $Kernel, $what, $generics, $key, $Params $fields } )+
    };
    (@choose each $Params:ident, $Key:ty, $($Kernel:ident [$($key:tt)+] $(or [$($other:tt)+])?;)+) => {
        #[cfg(not(target_arch = "nvptx64"))]
        impl $Params {
            /// Hands the kernel of that key, with these parameters and its launch, to `run`.
            pub fn with_kernel<U: $crate::Use>(self, key: $Key, run: U) -> U::Output {
                match key {
                    $( $($key)+ $(| $($other)+)? => run.of($Kernel(self), $Kernel(self).launch()), )+
                }
            }
        }
    };
    (@choose some $Params:ident, $Key:ty, $($Kernel:ident [$($key:tt)+];)+) => {
        impl $Params {
            /// The keys that have a kernel: those of every module before those of one for later GPUs.
            pub const KEYS: &'static [$Key] = &[$( $($key)+ ),+];
        }

        #[cfg(not(target_arch = "nvptx64"))]
        impl $Params {
            /// Hands the kernel of that key, with these parameters and its launch, to `run`; `None` where the key has none.
            pub fn with_kernel<U: $crate::Use>(self, key: $Key, run: U) -> Option<U::Output> {
                match key {
                    $( $($key)+ => Some(run.of($Kernel(self), $Kernel(self).launch())), )+
                    _ => None,
                }
            }
        }
    };
    (
        @kernel $options:tt $name:ident, $Kernel:ident, $what:expr, [$($generic:tt)*], [$($key:tt)+],
        $Params:ident $fields:tt
    ) => {
        #[doc = concat!("[`", stringify!($Params), "`] for ", $what, ".")]
        ///
        /// # Safety
        #[doc = concat!("As [`", stringify!($Params), "`] says.")]
        #[derive(Clone, Copy, Debug)]
        pub struct $Kernel(pub $Params);

        impl $Kernel {
            /// The launch for these parameters.
            #[must_use]
            pub fn launch(&self) -> $crate::Launch {
                launch($($key)+, &self.0)
            }

            #[cfg(not(target_arch = "nvptx64"))]
            fn parameters(&self) -> &$Params {
                &self.0
            }
        }

        entry! {
            $name, $Kernel, [threads($($key)+), 1, 1], $options, device::run::<$($generic)*>;
            $Params $fields
        }
    };
}
