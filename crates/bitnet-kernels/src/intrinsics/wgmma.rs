//! Matrix products of a warpgroup, which Hopper alone has: four warps multiply 64 rows at once, with B in shared memory.
//!
//! These instructions run by themselves, in the *async proxy*: what lanes have written to shared memory in the ordinary way is seen
//! there only after [`async_proxy_fence`]. Sums may not be touched meanwhile, so they belong to [`Pending`] until they have been waited for.
//!
//! Warp w of the four has rows `16 w ..`. The A fragments are those of a warp's products of the same k (see the module `mma`), and so are
//! the sums: `sums[4 j ..][..4]` are the C fragment of columns `8 j ..`. B has 128 bytes for each of its columns, in pieces of 16 at
//! [`swizzled_128`].

use super::Shared;
#[cfg(target_arch = "nvptx64")]
use core::arch::asm;

/// Orders this lane's earlier writes of shared memory, and copies that it has waited for, before what the async proxy does after a
/// barrier. `fence.proxy.async.shared::cta`, PTX ISA 9.7.13.4; sm_90.
#[inline(always)]
pub fn async_proxy_fence() {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: a fence has no precondition.
    unsafe {
        asm!(
            "fence.proxy.async.shared::cta;",
            options(nostack, preserves_flags)
        );
    }
    #[cfg(not(target_arch = "nvptx64"))]
    crate::emulator::warpgroup::async_proxy_fence();
}

/// The same words, which the compiler then computes before any wait that follows, instead of behind it, where nothing is under way any more.
#[inline(always)]
#[must_use]
pub fn settled(words: [[u32; 4]; 4]) -> [[u32; 4]; 4] {
    #[cfg(target_arch = "nvptx64")]
    let words = {
        let mut words = words;
        let [a, b, c, d] = &mut words;
        // SAFETY: the text is a comment.
        unsafe {
            asm!(
                "// {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {}",
                inout(reg32) a[0], inout(reg32) a[1], inout(reg32) a[2], inout(reg32) a[3],
                inout(reg32) b[0], inout(reg32) b[1], inout(reg32) b[2], inout(reg32) b[3],
                inout(reg32) c[0], inout(reg32) c[1], inout(reg32) c[2], inout(reg32) c[3],
                inout(reg32) d[0], inout(reg32) d[1], inout(reg32) d[2], inout(reg32) d[3],
                options(nostack, preserves_flags),
            );
        }
        words
    };
    words
}

/// Bytes from one column of B to the next.
const COLUMN_BYTES: u32 = 128;

/// Byte offset of 16-byte piece `piece` (0..8) of column `col` in a B of 128 bytes a column: the 128-byte swizzle of PTX ISA
/// 9.7.15.5.1, in which neighbors in a column of pieces lie in different banks.
#[inline(always)]
#[must_use]
pub const fn swizzled_128(col: u32, piece: u32) -> u32 {
    col * COLUMN_BYTES + (piece ^ (col % 8)) * 16
}

/// The descriptor of a B: address, a leading dimension that this swizzle has no use for, 1,024 bytes from 8 columns to the next 8, swizzle
/// of 128 bytes (PTX ISA 9.7.15.5.1, "Matrix descriptor"). What lies 32 bytes further along k is 2 more.
#[cfg(all(target_arch = "nvptx64", sm_90a))]
#[inline(always)]
fn descriptor(b: Shared<u32>) -> u64 {
    u64::from(b.address() & 0x3_ffff) >> 4 | 1 << 16 | 64 << 32 | 1 << 62
}

/// Sums of a warpgroup: an array of which each lane has half as many as B has columns.
pub trait Sums: Copy {
    /// Starts `A B`, A (64, 64 bytes) in registers, B (columns, 64 bytes) in shared memory: two
    /// `wgmma.mma_async.sync.aligned`, PTX ISA 9.7.15; sm_90a. `b` is where B's column 0 begins, in either half of its 128 bytes.
    ///
    /// # Safety
    /// All lanes of four consecutive warps, of which the first one's number is a multiple of 4, call this together. B's columns begin at a
    /// multiple of 1,024 bytes; a barrier after the writers' [`async_proxy_fence`] came before; nobody writes B before [`Pending::wait`].
    unsafe fn product(a: [[u32; 4]; 2], b: Shared<u32>) -> Pending<Self>;

    /// Starts `A B`, A (64, 128 bytes) in shared memory too, its rows laid out as B's columns, B (columns, 128 bytes): four of these
    /// instructions, which leave the warps free to do other things meanwhile, where those that take A from registers wait for their turn.
    ///
    /// # Safety
    /// As for [`Sums::product`]; A is there, and stays, as B.
    unsafe fn product_of_shared(a: Shared<u32>, b: Shared<u32>) -> Pending<Self>;

    /// Starts `C + A B`, as [`Sums::product_of_shared`].
    ///
    /// # Safety
    /// As there.
    unsafe fn plus_of_shared(self, a: Shared<u32>, b: Shared<u32>) -> Pending<Self>;

    /// Starts `C + A B`, as [`Sums::product`].
    ///
    /// # Safety
    /// As there.
    unsafe fn plus(self, a: [[u32; 4]; 2], b: Shared<u32>) -> Pending<Self>;

    /// Waits for all but the last `PENDING` groups of the warpgroup's products, which these sums are of.
    ///
    /// # Safety
    /// All lanes of the warpgroup call this together; these sums' groups are not among the last.
    #[cfg(target_arch = "nvptx64")]
    unsafe fn wait<const PENDING: usize>(self) -> Self;

    /// Adds a product.
    #[cfg(not(target_arch = "nvptx64"))]
    #[doc(hidden)]
    fn add(&mut self, product: &crate::emulator::warpgroup::Product);
}

/// Products of a warpgroup that may be under way, and its sums.
#[must_use]
pub struct Pending<S> {
    sums: S,
    /// What the emulator adds at the last moment.
    #[cfg(not(target_arch = "nvptx64"))]
    products: std::vec::Vec<crate::emulator::warpgroup::Product>,
}

impl<S: Sums> Pending<S> {
    /// Adds another product to the same sums without waiting.
    ///
    /// # Safety
    /// As for [`Sums::product`].
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub unsafe fn plus(self, a: [[u32; 4]; 2], b: Shared<u32>) -> Self {
        // SAFETY: the caller's promise.
        let next = unsafe { self.sums.plus(a, b) };
        #[cfg(not(target_arch = "nvptx64"))]
        let next = Self {
            products: self.products.into_iter().chain(next.products).collect(),
            ..next
        };
        next
    }

    /// Adds another product of shared operands to the same sums without waiting.
    ///
    /// # Safety
    /// As for [`Sums::product_of_shared`].
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub unsafe fn plus_of_shared(self, a: Shared<u32>, b: Shared<u32>) -> Self {
        // SAFETY: the caller's promise.
        let next = unsafe { self.sums.plus_of_shared(a, b) };
        #[cfg(not(target_arch = "nvptx64"))]
        let next = Self {
            products: self.products.into_iter().chain(next.products).collect(),
            ..next
        };
        next
    }

    /// Waits for all of the warpgroup's products.
    ///
    /// # Safety
    /// All lanes of the warpgroup call this together.
    #[inline(always)]
    #[must_use]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub unsafe fn wait(self) -> S {
        // SAFETY: the caller's promise.
        unsafe { self.wait_but::<0>() }
    }

    /// Waits for all but the last `PENDING` groups of the warpgroup's products: every call that starts products starts a group.
    /// `wgmma.wait_group.sync.aligned`, PTX ISA 9.7.15.7.3; sm_90a.
    ///
    /// # Safety
    /// All lanes of the warpgroup call this together; these sums' groups are not among the last.
    #[inline(always)]
    #[must_use]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub unsafe fn wait_but<const PENDING: usize>(self) -> S {
        #[cfg(target_arch = "nvptx64")]
        // SAFETY: the caller's promise.
        return unsafe { self.sums.wait::<PENDING>() };
        #[cfg(not(target_arch = "nvptx64"))]
        {
            let mut sums = self.sums;
            for product in &self.products {
                sums.add(product);
            }
            sums
        }
    }
}

/// Starts two products: their kind, what follows their operands, whether the sums are read, and the numbers of the sums but the first.
#[cfg(all(target_arch = "nvptx64", sm_90a))]
macro_rules! start {
    ($kind:literal, $first:literal, $second:literal, $use:ident $sums:ident $a:ident $b:ident [$($i:literal)*]) => {{
        let b = descriptor($b);
        asm!(
            "wgmma.fence.sync.aligned;",
            concat!(
                "wgmma.mma_async.sync.aligned.", $kind, " {{{0}", $(", {", $i, "}",)* "}}, {{{a}, {b}, {c}, {d}}}, {low}, ", $first, ";",
            ),
            concat!(
                "wgmma.mma_async.sync.aligned.", $kind, " {{{0}", $(", {", $i, "}",)* "}}, {{{e}, {f}, {g}, {h}}}, {high}, ", $second, ";",
            ),
            "wgmma.commit_group.sync.aligned;",
            $use(reg32) $sums[0], $($use(reg32) $sums[$i],)*
            a = in(reg32) $a[0][0], b = in(reg32) $a[0][1], c = in(reg32) $a[0][2], d = in(reg32) $a[0][3],
            e = in(reg32) $a[1][0], f = in(reg32) $a[1][1], g = in(reg32) $a[1][2], h = in(reg32) $a[1][3],
            low = in(reg64) b, high = in(reg64) b + 2,
            options(nostack, preserves_flags),
        )
    }};
}

/// Starts four products of shared operands, as [`start!`].
#[cfg(all(target_arch = "nvptx64", sm_90a))]
macro_rules! start_shared {
    ($kind:literal, $first:literal, $second:literal, $use:ident $sums:ident $a:ident $b:ident [$($i:literal)*]) => {{
        let (a, b) = (descriptor($a), descriptor($b));
        asm!(
            "wgmma.fence.sync.aligned;",
            concat!("wgmma.mma_async.sync.aligned.", $kind, " {{{0}", $(", {", $i, "}",)* "}}, {a0}, {b0}, ", $first, ";"),
            concat!("wgmma.mma_async.sync.aligned.", $kind, " {{{0}", $(", {", $i, "}",)* "}}, {a1}, {b1}, ", $second, ";"),
            concat!("wgmma.mma_async.sync.aligned.", $kind, " {{{0}", $(", {", $i, "}",)* "}}, {a2}, {b2}, ", $second, ";"),
            concat!("wgmma.mma_async.sync.aligned.", $kind, " {{{0}", $(", {", $i, "}",)* "}}, {a3}, {b3}, ", $second, ";"),
            "wgmma.commit_group.sync.aligned;",
            $use(reg32) $sums[0], $($use(reg32) $sums[$i],)*
            a0 = in(reg64) a, a1 = in(reg64) a + 2, a2 = in(reg64) a + 4, a3 = in(reg64) a + 6,
            b0 = in(reg64) b, b1 = in(reg64) b + 2, b2 = in(reg64) b + 4, b3 = in(reg64) b + 6,
            options(nostack, preserves_flags),
        )
    }};
}

/// The two functions that start products with an A of some kind: what they are called, A, how the emulator starts them, the macro that
/// does, the instructions' kind, what follows their operands where the sums before do not count and where they do, the length of the
/// sums, and the numbers of these but the first.
macro_rules! starts {
    (
        $product:ident, $plus:ident, $a:ident: $A:ty, $emulated:ident($given:expr),
        $start:ident, $kind:literal, $first:literal, $second:literal, $len:literal, $list:tt
    ) => {
        #[inline(always)]
        #[cfg_attr(feature = "emulator", track_caller)]
        unsafe fn $product($a: $A, b: Shared<u32>) -> Pending<Self> {
            #[cfg(all(target_arch = "nvptx64", sm_90a))]
            {
                let mut sums = core::mem::MaybeUninit::<Self>::uninit();
                // SAFETY: the caller's promise; the instructions write all sums.
                unsafe {
                    let sums = &mut *sums.as_mut_ptr();
                    $start!($kind, $first, $second, out sums $a b $list);
                }
                // SAFETY: as above.
                let sums = unsafe { sums.assume_init() };
                Pending { sums }
            }
            #[cfg(not(all(target_arch = "nvptx64", sm_90a)))]
            // SAFETY: the caller's promise.
            unsafe { [Default::default(); $len].$plus($a, b) }
        }

        #[inline(always)]
        #[cfg_attr(feature = "emulator", track_caller)]
        unsafe fn $plus(self, $a: $A, b: Shared<u32>) -> Pending<Self> {
            #[cfg(all(target_arch = "nvptx64", sm_90a))]
            {
                let mut sums = self;
                // SAFETY: the caller's promise.
                unsafe { $start!($kind, $second, $second, inout sums $a b $list) };
                Pending { sums }
            }
            // Other modules have no kernel that comes here.
            #[cfg(all(target_arch = "nvptx64", not(sm_90a)))]
            {
                let _ = ($a, b);
                Pending { sums: self }
            }
            #[cfg(not(target_arch = "nvptx64"))]
            Pending {
                sums: self,
                products: crate::emulator::warpgroup::Product::$emulated($kind, 2 * $len, $given, b.address(), swizzled_128),
            }
        }
    };
}

/// Waits for products: their sums, and the numbers of these but the first. The text names them, so that nobody takes them before.
#[cfg(target_arch = "nvptx64")]
macro_rules! wait {
    ($pending:ident $from:ident [$($i:literal)*]) => {{
        #[cfg_attr(not(sm_90a), expect(unused_mut))]
        let mut sums = $from;
        #[cfg(sm_90a)]
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "wgmma.wait_group.sync.aligned {pending};",
                concat!("// {0}", $(" {", $i, "}",)*),
                inout(reg32) sums[0], $(inout(reg32) sums[$i],)*
                pending = const $pending,
                options(nostack, preserves_flags),
            );
        }
        sums
    }};
}

/// Makes arrays the sums of a kind of product: what follows an instruction's operands where the sums before count and where they
/// do not, the same for shared operands, how the emulator multiplies, and the numbers of the sums but the first.
macro_rules! sums {
    ($(
        $kind:literal, [$type:ty; $len:literal], $plus:literal, $product:literal,
        $plus_shared:literal, $product_shared:literal, $multiply:path, $list:tt;
    )*) => {$(
        impl Sums for [$type; $len] {
            starts! {
                product, plus, a: [[u32; 4]; 2], start(a),
                start, $kind, $product, $plus, $len, $list
            }
            starts! {
                product_of_shared, plus_of_shared, a: Shared<u32>, of_shared(a.address()),
                start_shared, $kind, $product_shared, $plus_shared, $len, $list
            }

            #[cfg(target_arch = "nvptx64")]
            #[inline(always)]
            unsafe fn wait<const PENDING: usize>(self) -> Self {
                wait!(PENDING self $list)
            }

            #[cfg(not(target_arch = "nvptx64"))]
            #[track_caller]
            fn add(&mut self, product: &crate::emulator::warpgroup::Product) {
                product.add(self, $multiply);
            }
        }
    )*};
}

sums! {
    // Exact in i32.
    "m64n32k32.s32.s8.s8", [i32; 16], "1", "0", "1", "0", crate::emulator::products::signed_bytes, [
        1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
    ];
    "m64n64k32.s32.s8.s8", [i32; 32], "1", "0", "1", "0", crate::emulator::products::signed_bytes, [
        1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31
    ];
    "m64n128k32.s32.s8.s8", [i32; 64], "1", "0", "1", "0", crate::emulator::products::signed_bytes, [
        1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40
        41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63
    ];
    "m64n160k32.s32.s8.s8", [i32; 80], "1", "0", "1", "0", crate::emulator::products::signed_bytes, [
        1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40
        41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64 65 66 67 68 69 70 71 72 73 74 75 76 77
        78 79
    ];
    // The bits of `mma.m16n8k16`'s sums.
    "m64n64k16.f32.bf16.bf16", [f32; 32], "1, 1, 1, 0", "0, 1, 1, 0", "1, 1, 1, 0, 0", "0, 1, 1, 0, 0", crate::emulator::products::bf16, [
        1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31
    ];
    "m64n72k16.f32.bf16.bf16", [f32; 36], "1, 1, 1, 0", "0, 1, 1, 0", "1, 1, 1, 0, 0", "0, 1, 1, 0, 0", crate::emulator::products::bf16, [
        1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35
    ];
}
