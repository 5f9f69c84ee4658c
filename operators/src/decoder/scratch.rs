//! One pass over a message, which gathers every field that any type of message has.
//!
//! A message's `type` may come last, and only then it is known which of its fields count. So a field of a wrong type is
//! kept as what it is, and [`Scratch::message`] judges the fields of the message's own type. The last of repeated fields counts.

use super::json::{Field, Reader, Span, SyntaxError, TEXT_BYTES_MAX, Texts, Value};
use super::message::{Lines, Malformed, Message, Movement, Order};
use super::names::{self, Before, Guesses, Name};
use super::{Topic, lifecycle_kind, movement_kind, time};
use crate::epoch::Micros;

/// The longest part of a value that an error shows; characters.
const SHOWN_MAX: usize = 40;

/// A set of [`Name`]s.
type Names = u32;

const fn set(of: &[Name]) -> Names {
    let (mut names, mut at) = (0, 0);
    while at < of.len() {
        names |= 1 << of[at] as u8;
        at += 1;
    }
    names
}

const PLACED: Names = set(&[
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
]);
const LIFECYCLE: Names = set(&[Name::Type, Name::OrderId, Name::EventTime]);
const MOVEMENT: Names = set(&[Name::Type, Name::MovementId, Name::Sku, Name::Quantity, Name::EventTime]);

/// Fields of some type of message; the others are of lines and payments.
const ANY: Names = PLACED | LIFECYCLE | MOVEMENT;

/// A line with the right types.
#[derive(Clone, Copy)]
pub(super) struct LineSpans {
    pub sku: Span,
    pub quantity: i64,
    pub unit_price: i64,
}

/// A line as it was sent.
#[derive(Clone, Copy)]
struct RawLine {
    whole: Field,
    sku: Field,
    quantity: Field,
    unit_price: Field,
}

impl RawLine {
    const ABSENT: RawLine = RawLine { whole: Field::ABSENT, sku: Field::ABSENT, quantity: Field::ABSENT, unit_price: Field::ABSENT };
}

/// The fields of one message. Its room is used again for the next.
pub(super) struct Scratch {
    unescaped: String,
    guesses: Guesses,
    /// By [`Name`]; of those in `seen`.
    fields: [Field; names::COUNT],
    seen: Names,
    /// How many fields have names that no type has.
    others: u64,
    lines: Vec<LineSpans>,
    wrong_line: Option<(usize, RawLine)>,
    lines_others: u64,
    payment_method: Field,
    card_fingerprint: Field,
    payment_others: u64,
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch {
            unescaped: String::new(),
            guesses: Guesses::default(),
            fields: [Field::ABSENT; names::COUNT],
            seen: 0,
            others: 0,
            lines: Vec::new(),
            wrong_line: None,
            lines_others: 0,
            payment_method: Field::ABSENT,
            card_fingerprint: Field::ABSENT,
            payment_others: 0,
        }
    }
}

impl Scratch {
    /// The message and how many unknown fields it has.
    pub(super) fn read<'a>(&'a mut self, topic: Topic, message: &'a [u8]) -> Result<(Message<'a>, u64), Malformed> {
        if message.is_empty() {
            return Err(Malformed::Empty);
        }
        if message.len() > TEXT_BYTES_MAX {
            return Err(Malformed::TooLong(message.len()));
        }
        let text = simdutf8::basic::from_utf8(message).map_err(|_| not_utf8(message))?;
        self.gather(text)?;
        self.message(topic, text)
    }

    /// Reads all of the message into the scratch.
    fn gather(&mut self, text: &str) -> Result<(), Malformed> {
        let Scratch {
            unescaped,
            guesses,
            fields,
            seen,
            others,
            lines,
            wrong_line,
            lines_others,
            payment_method,
            card_fingerprint,
            payment_others,
        } = self;
        (*seen, *others, *lines_others, *payment_others) = (0, 0, 0, 0);
        (*wrong_line, *payment_method, *card_fingerprint) = (None, Field::ABSENT, Field::ABSENT);
        lines.clear();
        let mut reader = Reader::new(text, unescaped, guesses);
        if reader.peek() != Some(b'{') {
            let start = reader.at();
            reader.skip(1).and_then(|()| reader.end()).map_err(|error| Malformed::Syntax { error, at: reader.at() })?;
            return Err(Malformed::NotAnObject(shortened(text[start..].trim_end())));
        }
        let read = reader.object(Before::MESSAGE, |reader, name| {
            let Some(name) = name.filter(|name| ANY & 1 << *name as u8 != 0) else {
                *others += 1;
                return reader.skip(2);
            };
            let field = &mut fields[name as usize];
            match (name, reader.peek()) {
                (Name::Lines, Some(b'[')) => {
                    lines.clear();
                    (*wrong_line, *lines_others) = (None, 0);
                    reader.within(field, |reader| read_lines(reader, lines, wrong_line, lines_others))?;
                }
                (Name::Payment, Some(b'{')) => {
                    (*payment_method, *card_fingerprint, *payment_others) = (Field::ABSENT, Field::ABSENT, 0);
                    reader.within(field, |reader| read_payment(reader, payment_method, card_fingerprint, payment_others))?;
                }
                _ => reader.value(2, field)?,
            }
            *seen |= 1 << name as u8;
            Ok(())
        });
        read.and_then(|()| reader.end()).map_err(|error| Malformed::Syntax { error, at: reader.at() })
    }

    /// What the gathered fields say.
    fn message<'a>(&'a self, topic: Topic, text: &'a str) -> Result<(Message<'a>, u64), Malformed> {
        let fields = Judge { scratch: self, texts: Texts { message: text, unescaped: &self.unescaped } };
        let name = fields.text(Name::Type)?;
        let unknown_type = || Malformed::UnknownType(format!("{:?}", shortened(name)));
        let foreign = |own: Names| u64::from((self.seen & !own).count_ones()) + self.others;
        match topic {
            Topic::Orders if name == "order_placed" => {
                let order = Order {
                    order_id: fields.text(Name::OrderId)?,
                    customer_id: fields.text(Name::CustomerId)?,
                    event_time: fields.time()?,
                    currency: fields.text(Name::Currency)?,
                    total: fields.optional_integer(Name::Total)?,
                    lines: fields.lines()?,
                    payment_method: fields.of_payment(&self.payment_method, "payment.method")?,
                    card_fingerprint: fields.of_payment(&self.card_fingerprint, "payment.card_fingerprint")?,
                    device_id: fields.optional_text(Name::DeviceId)?,
                    ip: fields.optional_text(Name::Ip)?,
                    billing_country: fields.optional_text(Name::BillingCountry)?,
                    shipping_country: fields.optional_text(Name::ShippingCountry)?,
                };
                Ok((Message::Placed(order), foreign(PLACED) + self.lines_others + self.payment_others))
            }
            Topic::Orders => {
                let kind = lifecycle_kind(name).ok_or_else(unknown_type)?;
                let message = Message::Lifecycle { kind, order_id: fields.text(Name::OrderId)?, event_time: fields.time()? };
                Ok((message, foreign(LIFECYCLE)))
            }
            Topic::Inventory => {
                let movement = Movement {
                    kind: movement_kind(name).ok_or_else(unknown_type)?,
                    movement_id: fields.text(Name::MovementId)?,
                    sku: fields.text(Name::Sku)?,
                    quantity: fields.integer(Name::Quantity)?,
                    event_time: fields.time()?,
                };
                Ok((Message::Movement(movement), foreign(MOVEMENT)))
            }
        }
    }
}

fn read_lines(
    reader: &mut Reader<'_>,
    lines: &mut Vec<LineSpans>,
    wrong: &mut Option<(usize, RawLine)>,
    others: &mut u64,
) -> Result<(), SyntaxError> {
    let mut at = 0;
    reader.list(|reader| {
        let mut line = RawLine::ABSENT;
        if reader.peek() == Some(b'{') {
            let RawLine { whole, sku, quantity, unit_price } = &mut line;
            reader.within(whole, |reader| {
                reader.object(Before::LINE, |reader, name| {
                    let field = match name {
                        Some(Name::Sku) => &mut *sku,
                        Some(Name::Quantity) => &mut *quantity,
                        Some(Name::UnitPrice) => &mut *unit_price,
                        _ => {
                            *others += 1;
                            return reader.skip(4);
                        }
                    };
                    reader.value(4, field)
                })
            })?;
        } else {
            reader.value(3, &mut line.whole)?;
        }
        match (line.sku.value(), line.quantity.value(), line.unit_price.value()) {
            (Value::Text(sku), Value::Integer(quantity), Value::Integer(unit_price)) => lines.push(LineSpans { sku, quantity, unit_price }),
            _ if wrong.is_none() => *wrong = Some((at, line)),
            _ => {}
        }
        at += 1;
        Ok(())
    })
}

fn read_payment(reader: &mut Reader<'_>, method: &mut Field, card_fingerprint: &mut Field, others: &mut u64) -> Result<(), SyntaxError> {
    reader.object(Before::PAYMENT, |reader, name| {
        let field = match name {
            Some(Name::Method) => &mut *method,
            Some(Name::CardFingerprint) => &mut *card_fingerprint,
            _ => {
                *others += 1;
                return reader.skip(3);
            }
        };
        reader.value(3, field)
    })
}

/// Asks the gathered fields for values of a type.
struct Judge<'a> {
    scratch: &'a Scratch,
    texts: Texts<'a>,
}

impl<'a> Judge<'a> {
    #[inline]
    fn get(&self, name: Name) -> &'a Field {
        if self.scratch.seen & 1 << name as u8 == 0 { &Field::ABSENT } else { &self.scratch.fields[name as usize] }
    }

    #[cold]
    fn wrong(&self, name: impl Into<String>, field: &Field, expected: &'static str) -> Malformed {
        match field.value() {
            Value::Absent => Malformed::Missing(name.into()),
            _ => Malformed::WrongType { field: name.into(), expected, found: shortened(&self.texts.message[field.range()]) },
        }
    }

    #[inline]
    fn text(&self, name: Name) -> Result<&'a str, Malformed> {
        let field = self.get(name);
        match field.value() {
            Value::Text(span) => Ok(self.texts.get(span)),
            _ => Err(self.wrong(name.text(), field, "a text")),
        }
    }

    #[inline]
    fn optional_text(&self, name: Name) -> Result<Option<&'a str>, Malformed> {
        self.as_optional_text(self.get(name), name.text())
    }

    #[inline]
    fn as_optional_text(&self, field: &Field, name: &'static str) -> Result<Option<&'a str>, Malformed> {
        match field.value() {
            Value::Absent | Value::Null => Ok(None),
            Value::Text(span) => Ok(Some(self.texts.get(span))),
            _ => Err(self.wrong(name, field, "a text")),
        }
    }

    fn integer(&self, name: Name) -> Result<i64, Malformed> {
        let field = self.get(name);
        match field.value() {
            Value::Integer(integer) => Ok(integer),
            _ => Err(self.wrong(name.text(), field, "an integer of 64 bits")),
        }
    }

    #[inline]
    fn optional_integer(&self, name: Name) -> Result<Option<i64>, Malformed> {
        match self.get(name).value() {
            Value::Absent | Value::Null => Ok(None),
            _ => self.integer(name).map(Some),
        }
    }

    #[inline]
    fn time(&self) -> Result<Micros, Malformed> {
        let field = self.get(Name::EventTime);
        let micros = match field.value() {
            Value::Text(span) => time::parse_rfc3339_micros(self.texts.get(span)),
            Value::Integer(millis) => time::from_millis(millis),
            _ => None,
        };
        const EXPECTED: &str = "a time as RFC 3339 with an offset, or integer milliseconds since 1970";
        micros.ok_or_else(|| self.wrong(Name::EventTime.text(), field, EXPECTED))
    }

    #[inline]
    fn lines(&self) -> Result<Lines<'a>, Malformed> {
        let field = self.get(Name::Lines);
        match (field.value(), &self.scratch.wrong_line) {
            (Value::List, None) => Ok(Lines { texts: self.texts, spans: &self.scratch.lines }),
            (Value::List, Some((at, line))) => Err(self.wrong_line(*at, line)),
            _ => Err(self.wrong("lines", field, "a list")),
        }
    }

    #[cold]
    fn wrong_line(&self, at: usize, line: &RawLine) -> Malformed {
        if !matches!(line.whole.value(), Value::Object) {
            return self.wrong(format!("lines[{at}]"), &line.whole, "an object");
        }
        if !matches!(line.sku.value(), Value::Text(_)) {
            return self.wrong(format!("lines[{at}].sku"), &line.sku, "a text");
        }
        let is_quantity = !matches!(line.quantity.value(), Value::Integer(_));
        let (name, field) = if is_quantity { ("quantity", &line.quantity) } else { ("unit_price", &line.unit_price) };
        self.wrong(format!("lines[{at}].{name}"), field, "an integer of 64 bits")
    }

    #[inline]
    fn of_payment(&self, field: &Field, name: &'static str) -> Result<Option<&'a str>, Malformed> {
        let payment = self.get(Name::Payment);
        match payment.value() {
            Value::Object => self.as_optional_text(field, name),
            Value::Absent | Value::Null => Ok(None),
            _ => Err(self.wrong("payment", payment, "an object")),
        }
    }
}

#[cold]
fn not_utf8(message: &[u8]) -> Malformed {
    Malformed::Utf8(std::str::from_utf8(message).map_or_else(|e| e.valid_up_to(), str::len))
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
