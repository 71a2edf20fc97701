package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"

	"culvert.dev/tests/cluster/internal/layout"
)

// Socket is the control socket's name in the supervisor's working directory.
const Socket = "control.sock"

// answerWithin bounds a request, the longest of which waits for a node.
const answerWithin = startOfNodes + time.Minute

// Request asks a running cluster to stop or start one of its parts.
type Request struct {
	// Verb is "stop" or "start".
	Verb string `json:"verb"`
	// Kind is "node" or "component".
	Kind string `json:"kind"`
	Name string `json:"name"`
}

// Answer is empty when the request was fulfilled.
type Answer struct {
	Error string `json:"error,omitempty"`
}

// Ask sends a request to the supervisor whose process this machine knows as pid, and waits until it is fulfilled.
func Ask(pid int, request Request) error {
	// By way of its working directory, for a socket's name is short.
	connection, err := net.DialTimeout("unix", fmt.Sprintf("/proc/%d/cwd/%s", pid, Socket), 10*time.Second)
	if err != nil {
		return fmt.Errorf("the cluster does not answer: %w", err)
	}
	defer connection.Close()
	if err := connection.SetDeadline(time.Now().Add(answerWithin)); err != nil {
		return err
	}
	if err := json.NewEncoder(connection).Encode(request); err != nil {
		return err
	}
	var answer Answer
	if err := json.NewDecoder(connection).Decode(&answer); err != nil {
		return fmt.Errorf("the cluster does not answer: %w", err)
	}
	if answer.Error != "" {
		return errors.New(answer.Error)
	}
	return nil
}

func (s *supervisor) listen() (net.Listener, error) { return net.Listen("unix", Socket) }

func (s *supervisor) serve(requests net.Listener) error {
	for {
		connection, err := requests.Accept()
		if err != nil {
			return err
		}
		go s.answer(connection)
	}
}

func (s *supervisor) answer(connection net.Conn) {
	defer connection.Close()
	if err := connection.SetDeadline(time.Now().Add(answerWithin)); err != nil {
		return
	}
	var request Request
	if err := json.NewDecoder(connection).Decode(&request); err != nil {
		return
	}
	answer := Answer{}
	if err := s.fulfil(request); err != nil {
		answer.Error = err.Error()
	}
	// Whoever asked may be gone.
	_ = json.NewEncoder(connection).Encode(answer)
}

func (s *supervisor) fulfil(r Request) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	ctx := context.Background()
	switch r.Kind {
	case "node":
		for _, n := range s.nodes {
			if n.Name == r.Name {
				return s.fulfilNode(ctx, r.Verb, n)
			}
		}
		return fmt.Errorf("there is no node %q; there are n1 to n%d", r.Name, len(s.nodes))
	case "component":
		return s.fulfilComponent(ctx, r.Verb, r.Name)
	}
	return fmt.Errorf("a cluster has nodes and components, not %q", r.Kind)
}

func (s *supervisor) fulfilNode(ctx context.Context, verb string, n layout.Node) error {
	switch verb {
	case "stop":
		return s.stopMachine(n)
	case "start":
		if err := s.startMachine(n); err != nil {
			return err
		}
		return s.awaitMachine(ctx, n)
	}
	return fmt.Errorf("a node is stopped or started, not %q", verb)
}

func (s *supervisor) fulfilComponent(ctx context.Context, verb, name string) error {
	if _, err := s.arguments(name); err != nil {
		return err
	}
	switch verb {
	case "stop":
		running := s.components[name]
		if running == nil || running.Failure() != nil {
			return fmt.Errorf("%s does not run", name)
		}
		running.Kill()
		// From now on its absence is nobody's failure.
		delete(s.components, name)
		return nil
	case "start":
		if err := s.startComponent(name); err != nil {
			return err
		}
		if name == apiServer {
			return s.awaitAPI(ctx)
		}
		return nil
	}
	return fmt.Errorf("a component is stopped or started, not %q", verb)
}
