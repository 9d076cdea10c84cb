package audit

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"time"
)

// Values is a Query as it stands in a URL; QueryOf reads it.
func (q Query) Values() url.Values {
	v := url.Values{}
	set := func(key, value string) {
		if value != "" {
			v.Set(key, value)
		}
	}
	number := func(key string, n int64) {
		if n > 0 {
			v.Set(key, strconv.FormatInt(n, 10))
		}
	}
	from, to := q.Times()
	set("from", from)
	set("to", to)
	number("after", q.After)
	number("before", q.Before)
	set("act", string(q.Act))
	set("user", q.User)
	set("cluster", q.Cluster)
	set("object", q.Object)
	set("name", q.Name)
	set("policy", q.Policy)
	number("limit", int64(q.Limit))
	if q.Last {
		v.Set("last", "true")
	}
	return v
}

// QueryOf reads a Query from a URL. A key that it does not know is an error.
func QueryOf(v url.Values) (Query, error) {
	var q Query
	var limit int64
	for key := range v {
		value := v.Get(key)
		var err error
		switch key {
		case "from":
			q.From, err = time.Parse(time.RFC3339Nano, value)
		case "to":
			q.To, err = time.Parse(time.RFC3339Nano, value)
		case "after":
			q.After, err = strconv.ParseInt(value, 10, 64)
		case "before":
			q.Before, err = strconv.ParseInt(value, 10, 64)
		case "act":
			q.Act = Act(value)
		case "user":
			q.User = value
		case "cluster":
			q.Cluster = value
		case "object":
			q.Object = value
		case "name":
			q.Name = value
		case "policy":
			q.Policy = value
		case "limit":
			limit, err = strconv.ParseInt(value, 10, 32)
		case "last":
			q.Last, err = strconv.ParseBool(value)
		default:
			err = errors.New("want one of from, to, after, before, act, user, cluster, object, name, policy, limit, last")
		}
		if err != nil {
			return Query{}, fmt.Errorf("%s=%q: %w", key, value, err)
		}
	}
	if q.After < 0 || q.Before < 0 || limit < 0 {
		return Query{}, errors.New("after, before and limit must not be negative")
	}
	q.Limit = int(limit)
	return q, nil
}

// Period reads a time that may be a year, a month, a day or RFC 3339, and gives its begin and its end (exclusive), in UTC.
func Period(s string) (from, to time.Time, err error) {
	for _, f := range []struct {
		layout              string
		years, months, days int
	}{{"2006", 1, 0, 0}, {"2006-01", 0, 1, 0}, {"2006-01-02", 0, 0, 1}} {
		if t, err := time.Parse(f.layout, s); err == nil {
			return t, t.AddDate(f.years, f.months, f.days), nil
		}
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, t, fmt.Errorf("%q: want a year (2026), a month (2026-02), a day (2026-02-12) or a time (2026-02-12T10:14:00Z)", s)
	}
	return t, t, nil
}
