//! The names of fields, and a guess of which comes next.
//!
//! A producer writes its fields in the same order over and over. So the reader compares what is next with the name that
//! followed the last time: where that name ends is known without searching for it, and the processor reads on meanwhile. A wrong guess costs
//! nothing but the comparison, and no result depends on it.

/// The fields that some type of message has, at any level. The order is that of [`NAMES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Name {
    Type,
    OrderId,
    CustomerId,
    EventTime,
    Currency,
    Total,
    Lines,
    Payment,
    DeviceId,
    Ip,
    BillingCountry,
    ShippingCountry,
    MovementId,
    Sku,
    Quantity,
    UnitPrice,
    Method,
    CardFingerprint,
}

impl Name {
    const ALL: [Name; COUNT] = [
        Name::Type,
        Name::OrderId,
        Name::CustomerId,
        Name::EventTime,
        Name::Currency,
        Name::Total,
        Name::Lines,
        Name::Payment,
        Name::DeviceId,
        Name::Ip,
        Name::BillingCountry,
        Name::ShippingCountry,
        Name::MovementId,
        Name::Sku,
        Name::Quantity,
        Name::UnitPrice,
        Name::Method,
        Name::CardFingerprint,
    ];

    pub(super) fn of(text: &str) -> Option<Name> {
        Name::ALL.into_iter().find(|name| name.text() == text)
    }

    #[inline]
    pub(super) fn text(self) -> &'static str {
        NAMES[self as usize]
    }
}

/// How many names there are.
pub(super) const COUNT: usize = NAMES.len();

const NAMES: [&str; 18] = [
    "type",
    "order_id",
    "customer_id",
    "event_time",
    "currency",
    "total",
    "lines",
    "payment",
    "device_id",
    "ip",
    "billing_country",
    "shipping_country",
    "movement_id",
    "sku",
    "quantity",
    "unit_price",
    "method",
    "card_fingerprint",
];

/// What stands before a field: another, or the start of an object.
#[derive(Clone, Copy)]
pub(super) struct Before(u8);

impl Before {
    /// A field that no type has.
    pub(super) const OTHER: Before = Before(COUNT as u8);
    /// The start of a message.
    pub(super) const MESSAGE: Before = Before(COUNT as u8 + 1);
    /// The start of a line.
    pub(super) const LINE: Before = Before(COUNT as u8 + 2);
    /// The start of a payment.
    pub(super) const PAYMENT: Before = Before(COUNT as u8 + 3);
    const COUNT: usize = COUNT + 4;
}

impl From<Name> for Before {
    #[inline]
    fn from(name: Name) -> Before {
        Before(name as u8)
    }
}

/// The longest name with its quotes and colon fits.
const WORDS: usize = 3;

/// A name as it usually stands in a message: `"name":`, in words of eight bytes.
struct Pattern {
    words: [u64; WORDS],
    /// Which bytes of the words count.
    mask: [u64; WORDS],
    bytes: usize,
}

impl Pattern {
    const fn of(name: &str) -> Pattern {
        let bytes = name.len() + 3;
        assert!(bytes <= WORDS * 8, "a longer name needs more words");
        let (mut words, mut mask, mut at) = ([0; WORDS], [0; WORDS], 0);
        while at < bytes {
            let byte = if at == 0 || at == bytes - 2 {
                b'"'
            } else if at == bytes - 1 {
                b':'
            } else {
                name.as_bytes()[at - 1]
            };
            words[at / 8] |= (byte as u64) << (at % 8 * 8);
            mask[at / 8] |= 0xff << (at % 8 * 8);
            at += 1;
        }
        Pattern { words, mask, bytes }
    }
}

static PATTERNS: [Pattern; COUNT] = {
    let mut patterns = [const { Pattern::of("") }; COUNT];
    let mut at = 0;
    while at < COUNT {
        patterns[at] = Pattern::of(NAMES[at]);
        at += 1;
    }
    patterns
};

/// Which name followed what, the last time.
pub(super) struct Guesses([Name; Before::COUNT]);

impl Default for Guesses {
    fn default() -> Self {
        Guesses([Name::Type; Before::COUNT])
    }
}

impl Guesses {
    /// The name behind `before`, and the bytes of `"name":`, if `text` starts with it as guessed.
    #[inline(always)]
    pub(super) fn next(&self, before: Before, text: &[u8]) -> Option<(Name, usize)> {
        let name = self.0[before.0 as usize];
        let Pattern { words, mask, bytes } = &PATTERNS[name as usize];
        let text = text.first_chunk::<{ WORDS * 8 }>()?;
        let mut different = 0;
        for at in 0..WORDS {
            let mut word = [0; 8];
            word.copy_from_slice(&text[at * 8..at * 8 + 8]);
            different |= (u64::from_le_bytes(word) ^ words[at]) & mask[at];
        }
        (different == 0).then_some((name, *bytes))
    }

    /// `name` came behind `before`.
    pub(super) fn learn(&mut self, before: Before, name: Name) {
        self.0[before.0 as usize] = name;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_are_of_whole_names() {
        for name in Name::ALL {
            assert_eq!(Name::of(name.text()), Some(name));
            let mut guesses = Guesses::default();
            guesses.learn(Before::LINE, name);
            let quoted = format!("\"{}\":", name.text());
            let next = |text: &str| guesses.next(Before::LINE, format!("{text}{}", " ".repeat(24)).as_bytes());
            assert_eq!(next(&quoted), Some((name, quoted.len())));
            for at in 0..quoted.len() {
                let mut other = quoted.clone();
                other.replace_range(at..at + 1, "x");
                assert_eq!(next(&other), None, "{other}");
            }
        }
        assert_eq!(Name::of("sk"), None);
        assert_eq!(Guesses::default().next(Before::MESSAGE, b"\"type\":1}"), None, "too near to the end to be compared");
    }
}
