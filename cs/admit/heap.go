package admit

// push adds a lane to those that are due.
func (c *class) push(l *lane) {
	l.place = len(c.due)
	c.due = append(c.due, l)
	c.up(l.place)
}

// remove takes out the lane at a place.
func (c *class) remove(i int) {
	last := len(c.due) - 1
	c.due[i].place = parked
	if i != last {
		c.set(i, c.due[last])
	}
	c.due[last] = nil
	c.due = c.due[:last]
	if i != last {
		c.down(i)
		c.up(i)
	}
}

func (c *class) set(i int, l *lane) {
	c.due[i] = l
	l.place = i
}

func (c *class) up(i int) {
	l := c.due[i]
	for i > 0 {
		p := (i - 1) / 2
		if c.due[p].start <= l.start {
			break
		}
		c.set(i, c.due[p])
		i = p
	}
	c.set(i, l)
}

func (c *class) down(i int) {
	l := c.due[i]
	for {
		k := 2*i + 1
		if k >= len(c.due) {
			break
		}
		if k+1 < len(c.due) && c.due[k+1].start < c.due[k].start {
			k++
		}
		if l.start <= c.due[k].start {
			break
		}
		c.set(i, c.due[k])
		i = k
	}
	c.set(i, l)
}
