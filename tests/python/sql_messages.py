"""The few messages of Flight SQL that the tests send by hand, encoded
without protobuf: a field is a tag, a length and bytes."""

PREFIX = "type.googleapis.com/arrow.flight.protocol.sql."


def field(number, value):
    """One length-delimited field."""
    if isinstance(value, str):
        value = value.encode()
    return bytes([number << 3 | 2]) + varint(len(value)) + value


def varint(number):
    """A number in groups of seven bits."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def packed(name, *fields):
    """A command as `Any`: (number, value) for each field."""
    body = b"".join(field(number, value) for number, value in fields)
    return field(1, PREFIX + name) + field(2, body)


def statement_query(sql):
    """CommandStatementQuery."""
    return packed("CommandStatementQuery", (1, sql))


def ticket(handle):
    """TicketStatementQuery."""
    return packed("TicketStatementQuery", (1, handle))
