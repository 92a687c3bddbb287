//! Reading what may be a secret on the wrong line: serde's own errors repeat what they found, these
//! say only what was expected.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{
    Deserialize, DeserializeOwned, Deserializer, Error, MapAccess, SeqAccess, Visitor,
};

/// A text that no error repeats: serde's own say what they found instead of a text.
pub(super) struct Secret(pub(super) String);

/// A number, and yes or no: what was written in their place may be a password on the wrong line.
pub(super) struct Number<N>(pub(super) N);
pub(super) struct Flag(pub(super) bool);

impl<'de, N: TryFrom<u64>> Deserialize<'de> for Number<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        discreet(deserializer, "a number in its range")
    }
}

impl<N: TryFrom<u64>> Discreet for Number<N> {
    fn number(number: u64) -> Option<Self> {
        number.try_into().ok().map(Self)
    }
}

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        discreet(deserializer, "true or false")
    }
}

impl Discreet for Flag {
    fn flag(flag: bool) -> Option<Self> {
        Some(Self(flag))
    }
}

/// A list of which no error repeats what was found instead.
pub(super) struct List<T>(pub(super) Vec<T>);

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        discreet(deserializer, "a text in quotes")
    }
}

impl Discreet for Secret {
    fn text(text: &str) -> Option<Self> {
        Some(Self(text.into()))
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        discreet(deserializer, "a list in brackets")
    }
}

impl<T: DeserializeOwned> Discreet for List<T> {
    fn list<'de, A: SeqAccess<'de>>(list: A) -> Result<Option<Self>, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list)).map(|list| Some(Self(list)))
    }
}

/// What can be read from one or several shapes. `None` means that the shape is a wrong one.
pub(super) trait Discreet: Sized {
    fn text(_: &str) -> Option<Self> {
        None
    }

    fn number(_: u64) -> Option<Self> {
        None
    }

    fn flag(_: bool) -> Option<Self> {
        None
    }

    fn list<'de, A: SeqAccess<'de>>(_: A) -> Result<Option<Self>, A::Error> {
        Ok(None)
    }

    fn fields<'de, A: MapAccess<'de>>(_: A) -> Result<Option<Self>, A::Error> {
        Ok(None)
    }
}

pub(super) fn discreet<'de, T: Discreet, D: Deserializer<'de>>(
    deserializer: D,
    expected: &'static str,
) -> Result<T, D::Error> {
    deserializer.deserialize_any(Shapes { expected, of: PhantomData })
}

struct Shapes<T> {
    expected: &'static str,
    of: PhantomData<T>,
}

impl<T> Shapes<T> {
    fn wrong<E: Error>(&self) -> E {
        E::custom(format_args!("expected {}, found something else", self.expected))
    }
}

impl<'de, T: Discreet> Visitor<'de> for Shapes<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        T::text(text).ok_or_else(|| self.wrong())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<T, A::Error> {
        T::list(list)?.ok_or_else(|| self.wrong())
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<T, A::Error> {
        T::fields(fields)?.ok_or_else(|| self.wrong())
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<T, E> {
        T::flag(flag).ok_or_else(|| self.wrong())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<T, E> {
        Err(self.wrong())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        T::number(number).ok_or_else(|| self.wrong())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<T, E> {
        Err(self.wrong())
    }

    fn visit_bytes<E: Error>(self, _: &[u8]) -> Result<T, E> {
        Err(self.wrong())
    }
}
