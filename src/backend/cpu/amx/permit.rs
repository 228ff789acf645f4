//! Whether a program may use AMX: what the processor has, and the system's permission.
//!
//! The tile registers are 8 KiB of state per thread. Linux saves it only for processes that have asked for it, once, before
//! the first tile instruction; without the permission that instruction ends the process.

use std::sync::OnceLock;

/// The state of AMX in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amx {
    /// Tiles of bf16 can be used by every thread.
    Ready,
    /// The processor or the system has none.
    Missing,
    /// The processor has tiles, and the system does not allow them: its error number.
    Refused(i64),
}

/// The state of AMX. The first call asks for the permission.
pub fn amx() -> Amx {
    static AMX: OnceLock<Amx> = OnceLock::new();
    *AMX.get_or_init(|| if present() { ask() } else { Amx::Missing })
}

/// What a system's answer to the request means.
#[cfg_attr(not(all(target_arch = "x86_64", target_os = "linux")), allow(dead_code, reason = "nothing is asked there"))]
fn answer(result: i64) -> Amx {
    if result == 0 { Amx::Ready } else { Amx::Refused(-result) }
}

/// Whether the processor has tiles and products of bf16, and the system saves the tiles at all.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn present() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    /// Bits of leaf 7's EDX.
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    /// Bit of leaf 1's ECX: XGETBV may be used.
    const OSXSAVE: u32 = 1 << 27;
    /// Bits of XCR0: the configuration and the data of the tiles.
    const STATE: u32 = 1 << 17 | 1 << 18;
    // SAFETY: every x86-64 processor has the instruction; leaf 7 is only read where leaf 0 counts it. Newer compilers than
    // the oldest supported know that CPUID is safe.
    #[allow(unused_unsafe)]
    let (system, features) = unsafe {
        let last = __cpuid(0).eax;
        (__cpuid(1).ecx, if last >= 7 { __cpuid_count(7, 0).edx } else { 0 })
    };
    if system & OSXSAVE == 0 || features & (BF16 | TILE) != BF16 | TILE {
        return false;
    }
    let enabled: u32;
    // SAFETY: OSXSAVE says that the system allows XGETBV. It changes EAX and EDX only, and register 0 always exists.
    unsafe {
        std::arch::asm!("xgetbv", in("ecx") 0, out("eax") enabled, out("edx") _, options(nomem, nostack, preserves_flags));
    }
    enabled & STATE == STATE
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn present() -> bool {
    false
}

/// Asks Linux for the tiles' data, for all threads of the process.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn ask() -> Amx {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let result: i64;
    // SAFETY: the call takes two integers and touches no memory of this process. SYSCALL overwrites RCX and R11.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    answer(result)
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn ask() -> Amx {
    Amx::Missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_the_systems_error_number() {
        assert_eq!(answer(0), Amx::Ready);
        assert_eq!(answer(-95), Amx::Refused(95));
    }

    #[test]
    fn asking_again_gives_the_same_answer() {
        assert_eq!(amx(), amx());
        assert!(present() || amx() == Amx::Missing);
    }
}
