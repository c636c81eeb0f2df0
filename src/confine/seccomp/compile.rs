//! From a profile to classic BPF: a balanced search over ranges of numbers, then the rules of the one call.
//!
//! ```text
//! wrong architecture? -> EPERM
//! number >= N/2? ── number >= N/4? ── … ── allow | error | rules of one call ── allow | error
//! ```
//!
//! A chain of comparisons, which is what libseccomp and seccompiler make of a list, costs the kernel some 15 times as
//! much to take: it runs the program once for each number that there is, to learn which answers it may cache.
//!
//! Jumps go forward and at most 255 instructions far (`bpf_check_classic` of net/core/filter.c), so
//! the program is made from its end: every target is there, and its distance is known, when a jump to it is made.

use std::collections::HashMap;

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_K, BPF_LD, BPF_RET,
    BPF_W, sock_filter,
};
use serde::{Deserialize, Serialize};

use super::{Action, Comparison, FOREIGN, FOREIGN_ANSWER, Profile, Rule, Test, last_known};

/// A compiled profile. As JSON a list of numbers, one per instruction.
#[derive(Clone, Serialize, Deserialize)]
#[serde(from = "Vec<u64>", into = "Vec<u64>")]
pub struct Program(Vec<sock_filter>);

impl Program {
    /// Its instructions.
    #[must_use]
    pub fn instructions(&self) -> &[sock_filter] {
        &self.0
    }
}

impl Program {
    /// The same program, which asks where it would answer with an error number.
    pub(super) fn asking(mut self) -> Self {
        for instruction in &mut self.0 {
            let returns = u32::from(instruction.code) == BPF_RET | BPF_K;
            if returns && instruction.k & libc::SECCOMP_RET_ACTION_FULL == libc::SECCOMP_RET_ERRNO {
                instruction.k = libc::SECCOMP_RET_USER_NOTIF;
            }
        }
        self
    }
}

impl From<Program> for Vec<u64> {
    fn from(program: Program) -> Self {
        let packed = |i: &sock_filter| {
            u64::from(i.code) << 48 | u64::from(i.jt) << 40 | u64::from(i.jf) << 32 | u64::from(i.k)
        };
        program.0.iter().map(packed).collect()
    }
}

impl From<Vec<u64>> for Program {
    /// Any numbers make a program; whether it is one, the kernel decides.
    fn from(packed: Vec<u64>) -> Self {
        let instruction = |n: u64| {
            let [k0, k1, k2, k3, jf, jt, c0, c1] = n.to_le_bytes();
            sock_filter {
                code: u16::from_le_bytes([c0, c1]),
                jt,
                jf,
                k: u32::from_le_bytes([k0, k1, k2, k3]),
            }
        };
        Self(packed.into_iter().map(instruction).collect())
    }
}

impl PartialEq for Program {
    fn eq(&self, other: &Self) -> bool {
        Vec::from(self.clone()) == Vec::from(other.clone())
    }
}

impl Eq for Program {}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Program of {} instructions", self.0.len())
    }
}

/// What can't be compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The kernel takes no more (`BPF_MAXINSNS`).
    #[error(
        "the seccomp profile {profile} makes {instructions} instructions, the kernel takes 4096"
    )]
    TooLong {
        /// The profile's name.
        profile: String,
        /// How many it would be.
        instructions: usize,
    },
}

/// `AUDIT_ARCH_*` of linux/audit.h.
#[cfg(target_arch = "x86_64")]
pub(super) const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
pub(super) const ARCH: u32 = 0xc000_00b7;

/// Offsets in `struct seccomp_data` (seccomp(2)).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGS: u32 = 16;

/// Where an instruction stands, counted from the program's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Label(usize);

/// Where to go on; when the accumulator has the word at this offset already, the load can be passed over.
#[derive(Clone, Copy)]
struct Entry {
    at: Label,
    loaded: Option<(u32, Label)>,
}

impl From<Label> for Entry {
    fn from(at: Label) -> Self {
        Self { at, loaded: None }
    }
}

impl Entry {
    /// Where to enter with this word in the accumulator.
    fn with(self, word: Option<u32>) -> Label {
        match self.loaded {
            Some((loaded, after)) if Some(loaded) == word => after,
            _ => self.at,
        }
    }
}

/// What a range of numbers comes to.
#[derive(Clone, Copy, PartialEq)]
enum Leaf<'p> {
    Answer(Action),
    Rules(&'p [Rule]),
}

/// The same, compiled.
#[derive(Clone, Copy)]
enum Target {
    Answer(Action),
    Code(Label),
}

impl Profile {
    /// Makes the program.
    ///
    /// # Errors
    /// [`CompileError::TooLong`]: only a file can have that many rules.
    pub fn compile(&self) -> Result<Program, CompileError> {
        let mut out = Assembler::default();
        let targets: Vec<(u32, Target)> = self
            .ranges()
            .into_iter()
            .map(|(first, leaf)| match leaf {
                Leaf::Answer(action) => (first, Target::Answer(action)),
                Leaf::Rules(rules) => (first, Target::Code(out.rules(rules, self.otherwise))),
            })
            .collect();
        let search = out.search(&targets);
        out.go(search);
        let known_architecture = out.push(BPF_LD | BPF_W | BPF_ABS, NUMBER);
        let foreign = out.answer(FOREIGN_ANSWER);
        out.jump(BPF_JEQ, ARCH, known_architecture, foreign);
        out.push(BPF_LD | BPF_W | BPF_ABS, ARCHITECTURE);
        out.finish(self)
    }

    /// All numbers, as ranges: the first of each, and what the whole range comes to.
    fn ranges(&self) -> Vec<(u32, Leaf<'_>)> {
        let mut ranges: Vec<(u32, Leaf<'_>)> = vec![];
        let mut add = |first, leaf| {
            if ranges.last().is_none_or(|(_, last)| *last != leaf) {
                ranges.push((first, leaf));
            }
        };
        let mut next = 0;
        for (number, rules) in self.calls.range(..=last_known()) {
            if next < *number {
                add(next, Leaf::Answer(self.otherwise));
            }
            let leaf = match rules.first() {
                None => Leaf::Answer(self.otherwise),
                Some(first) if first.when.is_empty() => Leaf::Answer(first.action),
                Some(_) => Leaf::Rules(rules),
            };
            add(*number, leaf);
            next = number + 1;
        }
        if next <= last_known() {
            add(next, Leaf::Answer(self.otherwise));
        }
        for first in [last_known() + 1, FOREIGN] {
            add(first, Leaf::Answer(self.unknown(first)));
        }
        ranges
    }
}

/// A program in the making, its last instruction first.
#[derive(Default)]
struct Assembler {
    reversed: Vec<sock_filter>,
    /// The nearest instruction that returns this value.
    returns: HashMap<u32, Label>,
}

/// How far a conditional jump may be from its target when it is still to be made: two instructions may come between.
const NEAR: usize = 253;

impl Assembler {
    /// How many instructions would be passed over by a jump made now.
    fn distance(&self, to: Label) -> usize {
        self.reversed.len() - to.0 - 1
    }

    /// An instruction after which the one made before it is next.
    fn push(&mut self, code: u32, k: u32) -> Label {
        self.push_jump(code, k, 0, 0)
    }

    fn push_jump(&mut self, code: u32, k: u32, jt: u8, jf: u8) -> Label {
        let code = u16::try_from(code).expect("every code of classic BPF fits");
        self.reversed.push(sock_filter { code, jt, jf, k });
        Label(self.reversed.len() - 1)
    }

    /// Makes sure that what comes next in the program is `to`.
    fn go(&mut self, to: Label) {
        let distance = self.distance(to);
        if distance > 0 {
            self.push(BPF_JMP | BPF_JA, offset(distance));
        }
    }

    /// A conditional jump.
    fn jump(&mut self, condition: u32, k: u32, yes: Label, no: Label) -> Label {
        let yes = self.near(yes);
        let no = self.near(no);
        let short =
            |distance| u8::try_from(distance).expect("near, and at most one instruction more");
        let (yes, no) = (short(self.distance(yes)), short(self.distance(no)));
        self.push_jump(BPF_JMP | condition | BPF_K, k, yes, no)
    }

    /// Somewhere near that does the same as going to `to`.
    fn near(&mut self, to: Label) -> Label {
        let distance = self.distance(to);
        if distance <= NEAR {
            return to;
        }
        let there = self.reversed[to.0];
        if u32::from(there.code) == BPF_RET | BPF_K {
            return self.give(there.k);
        }
        self.push(BPF_JMP | BPF_JA, offset(distance))
    }

    fn answer(&mut self, action: Action) -> Label {
        self.give(match action {
            Action::Allow => libc::SECCOMP_RET_ALLOW,
            Action::Log => libc::SECCOMP_RET_LOG,
            Action::Errno(number) => libc::SECCOMP_RET_ERRNO | u32::from(number),
            Action::Trap => libc::SECCOMP_RET_TRAP,
            Action::KillThread => libc::SECCOMP_RET_KILL_THREAD,
            Action::KillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        })
    }

    /// Somewhere near that returns this.
    fn give(&mut self, value: u32) -> Label {
        match self.returns.get(&value) {
            Some(label) if self.distance(*label) <= NEAR => *label,
            _ => {
                let label = self.push(BPF_RET | BPF_K, value);
                self.returns.insert(value, label);
                label
            }
        }
    }

    /// Finds the range that the accumulator is in.
    fn search(&mut self, targets: &[(u32, Target)]) -> Label {
        if let [(_, target)] = targets {
            return match target {
                Target::Answer(action) => self.answer(*action),
                Target::Code(label) => *label,
            };
        }
        let (left, right) = targets.split_at(targets.len() / 2);
        let first = right[0].0;
        let right = self.search(right);
        let left = self.search(left);
        self.jump(BPF_JGE, first, right, left)
    }

    /// The first rule that applies.
    fn rules(&mut self, rules: &[Rule], otherwise: Action) -> Label {
        let mut next = Entry::from(self.answer(otherwise));
        for rule in rules.iter().rev() {
            let mut entry = Entry::from(self.answer(rule.action));
            for test in rule.when.iter().rev() {
                entry = self.test(test, entry, next);
            }
            next = entry;
        }
        next.at
    }

    fn test(&mut self, test: &Test, yes: Entry, no: Entry) -> Entry {
        match test.is {
            Comparison::Eq => self.equal(test, yes, no),
            Comparison::Ne => self.equal(test, no, yes),
            Comparison::Ge => self.ordered(BPF_JGE, test, yes, no),
            Comparison::Gt => self.ordered(BPF_JGT, test, yes, no),
            Comparison::Lt => self.ordered(BPF_JGE, test, no, yes),
            Comparison::Le => self.ordered(BPF_JGT, test, no, yes),
        }
    }

    fn equal(&mut self, test: &Test, yes: Entry, no: Entry) -> Entry {
        if test.value & !test.mask != 0 {
            return no;
        }
        let mut entry = yes;
        for word in [Word::low(test), Word::high(test)] {
            if word.mask != 0 {
                let jump = self.jump(
                    BPF_JEQ,
                    word.value,
                    entry.with(word.whole()),
                    no.with(word.whole()),
                );
                entry = self.load(word, jump);
            }
        }
        entry
    }

    /// `comparison` is "greater" or "greater or equal".
    fn ordered(&mut self, comparison: u32, test: &Test, yes: Entry, no: Entry) -> Entry {
        let (low, high) = (Word::low(test), Word::high(test));
        let jump = self.jump(
            comparison,
            low.value,
            yes.with(low.whole()),
            no.with(low.whole()),
        );
        let low = self.load(low, jump);
        let equal = self.jump(BPF_JEQ, high.value, low.at, no.with(high.whole()));
        let greater = self.jump(BPF_JGT, high.value, yes.with(high.whole()), equal);
        self.load(high, greater)
    }

    /// Loads the word, what counts of it, for the instruction `then`.
    fn load(&mut self, word: Word, then: Label) -> Entry {
        self.go(then);
        let after = match word.whole() {
            Some(_) => then,
            None => self.push(BPF_ALU | BPF_AND | BPF_K, word.mask),
        };
        self.go(after);
        let at = self.push(BPF_LD | BPF_W | BPF_ABS, word.offset);
        Entry {
            at,
            loaded: Some((word.offset, after)),
        }
    }

    fn finish(mut self, profile: &Profile) -> Result<Program, CompileError> {
        let instructions = self.reversed.len();
        if instructions > libc::BPF_MAXINSNS as usize {
            return Err(CompileError::TooLong {
                profile: profile.name.clone(),
                instructions,
            });
        }
        self.reversed.reverse();
        Ok(Program(self.reversed))
    }
}

/// Half of an argument: the accumulator has 32 bits.
#[derive(Clone, Copy)]
struct Word {
    offset: u32,
    mask: u32,
    value: u32,
}

impl Word {
    fn low(test: &Test) -> Self {
        // Little endian, as both architectures are.
        Self {
            offset: ARGS + 8 * u32::from(test.arg),
            mask: test.mask as u32,
            value: test.value as u32,
        }
    }

    fn high(test: &Test) -> Self {
        Self {
            offset: ARGS + 8 * u32::from(test.arg) + 4,
            mask: (test.mask >> 32) as u32,
            value: (test.value >> 32) as u32,
        }
    }

    /// Its offset, if all of it counts: then the accumulator has it unchanged.
    fn whole(self) -> Option<u32> {
        (self.mask == u32::MAX).then_some(self.offset)
    }
}

fn offset(distance: usize) -> u32 {
    u32::try_from(distance).expect("no program is that long")
}

#[cfg(test)]
mod tests {
    use super::super::{self as seccomp, always};
    use super::*;

    /// What the kernel's interpreter does with what our programs have in them (net/core/filter.c); it refuses the rest.
    fn interpret(program: &Program, arch: u32, number: u32, args: [u64; 6]) -> u32 {
        let mut data = [0_u8; 64];
        data[0..4].copy_from_slice(&number.to_le_bytes());
        data[4..8].copy_from_slice(&arch.to_le_bytes());
        for (i, arg) in args.iter().enumerate() {
            data[16 + 8 * i..][..8].copy_from_slice(&arg.to_le_bytes());
        }
        let (mut at, mut a) = (0_usize, 0_u32);
        loop {
            let i = program.instructions()[at];
            at += 1;
            let mut branch = |yes: bool| at += usize::from(if yes { i.jt } else { i.jf });
            match u32::from(i.code) {
                0x20 => a = u32::from_le_bytes(data[i.k as usize..][..4].try_into().unwrap()),
                0x54 => a &= i.k,
                0x05 => at += i.k as usize,
                0x15 => branch(a == i.k),
                0x25 => branch(a > i.k),
                0x35 => branch(a >= i.k),
                0x06 => return i.k,
                code => panic!("instruction {code:#x}"),
            }
        }
    }

    fn value(action: Action) -> u32 {
        match action {
            Action::Allow => 0x7fff_0000,
            Action::Log => 0x7ffc_0000,
            Action::Errno(number) => 0x0005_0000 | u32::from(number),
            Action::Trap => 0x0003_0000,
            Action::KillThread => 0,
            Action::KillProcess => 0x8000_0000,
        }
    }

    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }

        /// One of these, or a neighbour, or one with a bit changed, or anything.
        fn near(&mut self, values: &[u64]) -> u64 {
            let random = self.next();
            if values.is_empty() {
                return random >> (self.next() % 64);
            }
            let value = values[usize::try_from(random >> 8).unwrap() % values.len()];
            match random % 8 {
                0..=3 => value,
                4 => value.wrapping_add(1),
                5 => value.wrapping_sub(1),
                6 => value ^ 1 << (self.next() % 64),
                _ => self.next() >> (random >> 8 & 63),
            }
        }
    }

    /// Every number, and the values that its rules speak of and random ones as arguments.
    fn agree(profile: &Profile, program: &Program, tries: usize) {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let numbers = (0..=600)
            .chain(FOREIGN - 2..FOREIGN + 600)
            .chain([u32::MAX - 1, u32::MAX]);
        for number in numbers {
            let rules = profile.calls.get(&number).map_or(&[][..], Vec::as_slice);
            let values: Vec<u64> = rules
                .iter()
                .flat_map(|rule| &rule.when)
                .flat_map(|test| [test.value, test.mask])
                .collect();
            for _ in 0..if rules.is_empty() { 1 } else { tries } {
                let args = std::array::from_fn(|_| random.near(&values));
                assert_eq!(
                    interpret(program, ARCH, number, args),
                    value(profile.answer(number, args)),
                    "{} {number} {args:x?}",
                    profile.name
                );
            }
        }
    }

    fn all() -> Vec<Profile> {
        vec![
            seccomp::default(),
            seccomp::strict(),
            seccomp::sidecar(),
            seccomp::relay(seccomp::Carries::ALL),
            seccomp::init(),
            seccomp::roles::on_the_way_to(&seccomp::default()),
            seccomp::roles::visitor(&seccomp::sidecar()),
            seccomp::roles::visitor(&seccomp::relay(seccomp::Carries::ALL)),
        ]
    }

    #[test]
    fn a_program_answers_as_its_profile_does() {
        for profile in all() {
            agree(&profile, &profile.compile().unwrap(), 300);
        }
    }

    #[test]
    fn our_programs_are_small() {
        for profile in all() {
            let instructions = profile.compile().unwrap().instructions().len();
            println!("{}: {instructions} instructions", profile.name);
            assert!(
                instructions < 450,
                "{} has {instructions} instructions",
                profile.name
            );
        }
    }

    #[test]
    fn random_profiles_with_far_jumps_answer_as_they_say() {
        let mut random = Random(42);
        let actions = [
            Action::Allow,
            Action::Errno(1),
            Action::Errno(38),
            Action::Log,
            Action::Trap,
            Action::KillThread,
            Action::KillProcess,
        ];
        let comparisons = [
            Comparison::Eq,
            Comparison::Ne,
            Comparison::Lt,
            Comparison::Le,
            Comparison::Gt,
            Comparison::Ge,
        ];
        let mut longest = 0;
        for round in 0..60 {
            let mut one_of = |n: usize| usize::try_from(random.next() >> 16).unwrap() % n;
            let mut calls = std::collections::BTreeMap::new();
            for number in 0..=last_known() + 3 {
                let rules = (0..one_of(3))
                    .map(|_| Rule {
                        when: (0..one_of(1 + round % 3))
                            .map(|_| Test {
                                arg: u8::try_from(one_of(6)).unwrap(),
                                mask: [u64::MAX, 0xffff_ffff, 0xff00, 0x7_0000_0007, 0][one_of(5)],
                                is: comparisons[one_of(6)],
                                value: [0, 1, 7, 0x7f00, 0x1_0000_0001, 0x7_0000_0000][one_of(6)],
                            })
                            .collect(),
                        action: actions[one_of(7)],
                    })
                    .collect();
                calls.insert(number, rules);
            }
            let profile = Profile {
                name: format!("random {round}"),
                otherwise: actions[round % 7],
                calls,
                unknown: vec![],
            };
            match profile.compile() {
                Ok(program) => {
                    longest = longest.max(program.instructions().len());
                    agree(&profile, &program, 40);
                }
                Err(e) => panic!("{e}"),
            }
        }
        assert!(longest > 1500, "{longest} instructions try no far jump");
    }

    #[test]
    fn another_architecture_is_refused_whatever_the_profile_allows() {
        let open = Profile {
            name: "open".to_owned(),
            otherwise: Action::Allow,
            calls: [(0, vec![always(Action::Allow)])].into(),
            unknown: vec![],
        };
        let program = open.compile().unwrap();
        assert_eq!(interpret(&program, ARCH, 0, [0; 6]), 0x7fff_0000);
        // AUDIT_ARCH_I386, and none at all
        for arch in [0x4000_0003, 0] {
            assert_eq!(interpret(&program, arch, 0, [0; 6]), 0x0005_0001);
        }
        // x32 has the architecture of x86_64
        assert_eq!(interpret(&program, ARCH, FOREIGN, [0; 6]), 0x0005_0001);
    }

    #[test]
    fn a_program_survives_json() {
        let program = seccomp::default().compile().unwrap();
        let json = serde_json::to_string(&program).unwrap();
        assert_eq!(serde_json::from_str::<Program>(&json).unwrap(), program);
    }

    #[test]
    fn a_program_that_the_kernel_would_refuse_is_an_error() {
        let rule = |value: u64| Rule {
            when: vec![Test {
                arg: 0,
                mask: u64::MAX,
                is: Comparison::Eq,
                value: value << 32 | value,
            }],
            action: Action::Allow,
        };
        let profile = Profile {
            name: "long".to_owned(),
            otherwise: Action::Errno(1),
            calls: [(1, (0..2000).map(rule).collect())].into(),
            unknown: vec![],
        };
        let error = profile.compile().unwrap_err().to_string();
        assert!(
            error.starts_with("the seccomp profile long makes "),
            "{error}"
        );
    }
}
