//! One argument as it is typed: numbers, constants, strings, buffers.

use appkernel::calls::{Kind, constant, constant_names};

/// What an argument becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// It is passed as it is.
    Number(u64),
    /// The address of these bytes, which are put into the target.
    In(Vec<u8>),
    /// The address of as many bytes, which are shown afterwards.
    Out(usize),
    /// It is ours to choose: see [`Plan`](super::plan::Plan).
    Ours,
}

/// The largest buffer that is put into the target.
pub(crate) const MAX_BUFFER: usize = 16 << 20;

/// Reads `word` as an argument of `kind`, or says what is wrong with it and what to do.
pub(crate) fn parse(kind: Kind, word: &str) -> Result<Value, String> {
    if word == "_" {
        return Ok(Value::Ours);
    }
    if let Some(buffer) = word.strip_prefix('@') {
        return match takes_address(kind) {
            true => parse_buffer(kind, buffer),
            false => Err(format!("`{word}` is a buffer, but this argument is a number; give one")),
        };
    }
    match kind {
        Kind::Path | Kind::Text if !is_address(word) => Ok(Value::In(string(kind, word))),
        Kind::Time if !is_address(word) => parse_seconds(word).map(Value::In),
        Kind::Octal => parse_permissions(word).map(Value::Number),
        _ => parse_number(kind, word).map(Value::Number),
    }
}

/// Whether an argument of this kind can be the address of a buffer.
fn takes_address(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Hex
            | Kind::Path
            | Kind::Text
            | Kind::Data
            | Kind::OutInts
            | Kind::Out(_)
            | Kind::Length
            | Kind::Strings
            | Kind::Environment
            | Kind::Time
    )
}

/// Whether `word` means an address even where strings are expected.
fn is_address(word: &str) -> bool {
    word == "NULL" || word.strip_prefix("0x").is_some_and(|digits| u64::from_str_radix(digits, 16).is_ok())
}

/// Bytes with a length of their own have no NUL at the end; other strings have.
fn string(kind: Kind, text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    if kind != Kind::Text {
        bytes.push(0);
    }
    bytes
}

fn parse_buffer(kind: Kind, buffer: &str) -> Result<Value, String> {
    if let Some(text) = buffer.strip_prefix("text:") {
        return Ok(Value::In(string(kind, text)));
    }
    if let Some(digits) = buffer.strip_prefix("hex:") {
        let bytes = parse_hex(digits);
        return bytes
            .map(Value::In)
            .ok_or_else(|| format!("`{digits}` is no hexadecimal; give two digits for each byte"));
    }
    if let Some(len) = buffer.strip_prefix("out:") {
        return match len.parse() {
            Ok(len @ 1..=MAX_BUFFER) => Ok(Value::Out(len)),
            _ => Err(format!("`{len}` is no size for a buffer; give 1 to {MAX_BUFFER} bytes")),
        };
    }
    Err(format!("`@{buffer}` is no buffer; use @hex:..., @text:... or @out:BYTES"))
}

fn parse_hex(digits: &str) -> Option<Vec<u8>> {
    let digits: Vec<u32> = digits.chars().map(|c| c.to_digit(16)).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| u8::try_from(high << 4 | low).ok());
    rest.is_empty().then(|| bytes.collect())?
}

/// Seconds, as a `struct timespec` (timespec(3type)).
fn parse_seconds(word: &str) -> Result<Vec<u8>, String> {
    let wrong = || format!("`{word}` is no time; give seconds, such as 0.5, or an address with 0x");
    let (seconds, fraction) = word.split_once('.').unwrap_or((word, ""));
    if fraction.len() > 9 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let seconds: u32 = seconds.parse().map_err(|_| wrong())?;
    let nanoseconds: i64 = format!("{fraction:0<9}").parse().map_err(|_| wrong())?;
    Ok([i64::from(seconds).to_le_bytes(), nanoseconds.to_le_bytes()].concat())
}

/// Permissions are octal with and without a leading 0, as chmod(1) has it.
fn parse_permissions(word: &str) -> Result<u64, String> {
    let digits = word.strip_prefix("0o").unwrap_or(word);
    u32::from_str_radix(digits, 8)
        .map(u64::from)
        .map_err(|_| format!("`{word}` are no permissions; give them in octal, such as 0644"))
}

/// Numbers and constants, joined by `|`.
fn parse_number(kind: Kind, word: &str) -> Result<u64, String> {
    let mut value = 0;
    for term in word.split('|') {
        value |= parse_term(kind, term)?;
    }
    Ok(value)
}

fn parse_term(kind: Kind, term: &str) -> Result<u64, String> {
    if term == "NULL" {
        return Ok(0);
    }
    if let Some(value) = constant(term) {
        return Ok(value);
    }
    if term.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Err(unknown_constant(kind, term));
    }
    let (digits, negative) = term.strip_prefix('-').map_or((term, false), |digits| (digits, true));
    let (digits, radix) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if digits.len() > 1 && digits.starts_with('0') => (digits.trim_start_matches("0o"), 8),
        None => (digits, 10),
    };
    // A sign here would be a second one.
    let magnitude = digits.starts_with(|c: char| c.is_ascii_alphanumeric()).then_some(digits);
    let magnitude = magnitude.and_then(|digits| i128::from_str_radix(digits, radix).ok());
    let Some(magnitude) = magnitude else {
        return Err(format!("`{term}` is no number; give a decimal, a 0x number, or constants joined by |"));
    };
    let value = if negative { -magnitude } else { magnitude };
    in_range(kind, value).ok_or_else(|| {
        let bits = if is_int(kind) { 32 } else { 64 };
        format!("{term} does not fit into {bits} bits; give a smaller number")
    })
}

/// The register's value. A C `int` may be written as signed or unsigned.
fn in_range(kind: Kind, value: i128) -> Option<u64> {
    if is_int(kind) && !(i128::from(i32::MIN)..=i128::from(u32::MAX)).contains(&value) {
        return None;
    }
    u64::try_from(value).ok().or_else(|| i64::try_from(value).ok().map(i64::cast_unsigned))
}

fn is_int(kind: Kind) -> bool {
    matches!(kind, Kind::Int | Kind::Dir | Kind::Signal | Kind::OpenFlags)
}

fn unknown_constant(kind: Kind, name: &str) -> String {
    let here = match kind {
        Kind::Bits(names) | Kind::One(names) => names,
        _ => &[],
    };
    let nearest =
        nearest(name, here.iter().map(|&(_, name)| name)).or_else(|| nearest(name, constant_names()));
    match nearest {
        Some(nearest) => format!("unknown constant `{name}`; did you mean {nearest}? A number will do, too"),
        None => format!("unknown constant `{name}`; give a number instead"),
    }
}

/// The one of `names` that looks most like `name`, if one does.
pub(crate) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    /// Below this, names have little in common.
    const ALIKE: f64 = 0.8;
    names
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|&(likeness, _)| likeness > ALIKE)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn number(word: &str) -> u64 {
        match parse(Kind::Hex, word) {
            Ok(Value::Number(value)) => value,
            other => panic!("{word}: {other:?}"),
        }
    }

    #[track_caller]
    fn wrong(kind: Kind, word: &str) -> String {
        parse(kind, word).expect_err("it is wrong")
    }

    #[test]
    fn numbers_are_decimal_hexadecimal_octal_and_negative() {
        assert_eq!(number("10"), 10);
        assert_eq!(number("0x7fff"), 0x7fff);
        assert_eq!(number("0644"), 0o644);
        assert_eq!(number("0o17"), 0o17);
        assert_eq!(number("-1"), u64::MAX);
        assert_eq!(number("-0x10"), 16u64.wrapping_neg());
        assert_eq!(number("0xffffffffffffffff"), u64::MAX);
        assert_eq!(number("0"), 0);
        assert_eq!(number("NULL"), 0);
    }

    #[test]
    fn constants_are_joined_with_each_other_and_with_numbers() {
        assert_eq!(number("PROT_READ|PROT_WRITE|0x100"), 0x103);
        assert_eq!(number("O_RDONLY"), 0);
        assert_eq!(number("AT_FDCWD"), (-100i64).cast_unsigned());
    }

    #[test]
    fn what_is_no_number_is_refused_in_words_that_help() {
        for word in
            ["", "--1", "0x", "1 2", "5|", "+5", "0xfg", "99999999999999999999999", "-0x8000000000000001"]
        {
            let why = wrong(Kind::Hex, word);
            assert!(why.contains("give a"), "{word}: {why}");
        }
        assert!(wrong(Kind::Int, "4294967296").contains("32 bits"));
        assert_eq!(parse(Kind::Int, "4294967295"), Ok(Value::Number(4_294_967_295)));
    }

    #[test]
    fn an_unknown_constant_comes_with_the_nearest_one() {
        assert!(wrong(Kind::Hex, "MADV_DONTNED").contains("did you mean MADV_DONTNEED?"));
        assert!(wrong(Kind::Int, "O_RDONLYY").contains("did you mean O_RDONLY?"));
        assert!(wrong(Kind::Int, "xyzzy").contains("give a number instead"));
    }

    #[test]
    fn paths_are_strings_unless_they_are_addresses() {
        assert_eq!(parse(Kind::Path, "/etc"), Ok(Value::In(b"/etc\0".to_vec())));
        assert_eq!(parse(Kind::Text, "hi"), Ok(Value::In(b"hi".to_vec())));
        assert_eq!(parse(Kind::Path, "0x7000"), Ok(Value::Number(0x7000)));
        assert_eq!(parse(Kind::Path, "0xyz"), Ok(Value::In(b"0xyz\0".to_vec())));
        assert_eq!(parse(Kind::Path, "@text:0x7000"), Ok(Value::In(b"0x7000\0".to_vec())));
    }

    #[test]
    fn buffers_are_given_as_hexadecimal_text_or_size() {
        assert_eq!(parse(Kind::Hex, "@hex:00ff"), Ok(Value::In(vec![0, 0xff])));
        assert_eq!(parse(Kind::Data, "@out:64"), Ok(Value::Out(64)));
        assert!(wrong(Kind::Hex, "@hex:0").contains("two digits"));
        assert!(wrong(Kind::Hex, "@hex:+f").contains("two digits"));
        assert!(wrong(Kind::Hex, "@out:0").contains("no size"));
        assert!(wrong(Kind::Hex, "@out:99999999999").contains("no size"));
        assert!(wrong(Kind::Hex, "@file:x").contains("use @hex:"));
        assert!(wrong(Kind::Int, "@hex:00").contains("is a number"));
    }

    #[test]
    fn times_are_seconds_and_permissions_octal() {
        let half = [[0; 8], 500_000_000i64.to_le_bytes()].concat();
        assert_eq!(parse(Kind::Time, "0.5"), Ok(Value::In(half)));
        assert!(wrong(Kind::Time, "1.2.3").contains("give seconds"));
        assert!(wrong(Kind::Time, "soon").contains("give seconds"));
        assert_eq!(parse(Kind::Octal, "644"), Ok(Value::Number(0o644)));
        assert!(wrong(Kind::Octal, "0689").contains("octal"));
    }
}
