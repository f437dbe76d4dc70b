package reactor

// Layer is a Handler that stands between a connection and who uses it, such as one that encrypts: it has things to do that are neither received nor sent.
type Layer interface {
	Handler
	// OnTurn is called in each turn of the loop in which there is something to do for the connection, such as after Turn, before what is queued is sent. It
	// may send, which leaves at once.
	OnTurn(c *Conn)
}

// Turn has OnTurn of the connection's Layer called before the loop waits again, unless the connection has ended by then.
func (c *Conn) Turn() { c.queue() }

// ownTurn calls OnTurn, and reports whether the connection lives.
func (c *Conn) ownTurn() bool {
	c.queued = true // what OnTurn begins is done in this turn
	c.layer.OnTurn(c)
	c.queued = false
	if c.err != nil {
		c.queue()
		return false
	}
	return true
}
