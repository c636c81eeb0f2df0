//! Validated names: checked once, then carried by their type.
#![forbid(unsafe_code)]

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name is empty.
    #[error("a name can't be empty")]
    Empty,
    /// The name has more bytes than its kind allows.
    #[error("`{name}` has {len} bytes, at most {max} are allowed")]
    TooLong {
        /// The name as given.
        name: String,
        /// Its length in bytes.
        len: usize,
        /// The longest length that is allowed, in bytes.
        max: usize,
    },
    /// The name has a character that can't stand in a path, a link's name and a table's name alike.
    #[error(
        "`{name}` has the character {bad:?}; letters, digits, `-` and `_` are allowed, and the first must be a letter or a digit"
    )]
    Character {
        /// The name as given.
        name: String,
        /// The first character that is not allowed.
        bad: char,
    },
}

fn check(name: &str, max: usize) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > max {
        return Err(NameError::TooLong {
            name: name.to_owned(),
            len: name.len(),
            max,
        });
    }
    for (i, c) in name.chars().enumerate() {
        let fine = c.is_ascii_alphanumeric() || (i > 0 && matches!(c, '-' | '_'));
        if !fine {
            return Err(NameError::Character {
                name: name.to_owned(),
                bad: c,
            });
        }
    }
    Ok(())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident, $max:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The longest such name, in bytes.
            pub const MAX: usize = $max;

            /// Checks `name` and takes it.
            ///
            /// # Errors
            /// [`NameError`] says what is wrong with it.
            pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
                let name = name.into();
                check(&name, Self::MAX)?;
                Ok(Self(name))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(name: String) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl std::str::FromStr for $type {
            type Err = NameError;
            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::new(name)
            }
        }
    };
}

name_type!(
    /// A stack's name. It stands in paths (`/run/lrpns/NAME`), in the name of an nftables table
    /// and in link aliases.
    StackName,
    48
);
name_type!(
    /// The name of one part of a stack: `sidecar`, `relay`, `app` or what follows `[app.` in the file.
    PartName,
    32
);
name_type!(
    /// A network link's name: at most 15 bytes (`IFNAMSIZ` less its NUL, netdevice(7)).
    IfName,
    15
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_letters_digits_dash_and_underscore() {
        assert!(StackName::new("customerA").is_ok());
        assert!(StackName::new("a-1_b").is_ok());
        for bad in ["", "-a", "a/b", "..", "a b", "ä", &"x".repeat(49)] {
            assert!(StackName::new(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_link_name_has_at_most_15_bytes() {
        assert!(IfName::new("a".repeat(15)).is_ok());
        assert!(IfName::new("a".repeat(16)).is_err());
    }
}
