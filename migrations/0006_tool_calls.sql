-- What was done with credentials, as agents and tools report it, and as the broker knows it itself.

CREATE TABLE leasehold.tool_calls (
  tenant           text        NOT NULL,
  call_id          text        NOT NULL,
  task_id          text        NOT NULL,
  root_task_id     text        NOT NULL,
  request_id       text        NOT NULL,
  request_digest   text        NOT NULL,
  reporter         text        NOT NULL CHECK (reporter IN ('agent', 'tool')),
  reported_by      text        NOT NULL,
  agent            text        NOT NULL,
  workload         text        NOT NULL,
  -- json, not jsonb: read as a whole, never searched, and cheaper to write.
  chain            json,
  tool             text        NOT NULL,
  tier             text        NOT NULL CHECK (tier IN ('read', 'write', 'execute')),
  lease_id         text,
  action           text        NOT NULL,
  arguments_digest text,
  arguments        json,
  target           json,
  about_call_id    text,
  peer_workload    text,
  peer_address     text,
  times_stated     boolean     NOT NULL,
  started_at       timestamptz NOT NULL,
  recorded_at      timestamptz NOT NULL,
  -- The end. All else is never changed.
  ended_at         timestamptz,
  outcome          text        CHECK (outcome IN ('succeeded', 'failed', 'refused', 'unknown')),
  error            text,
  effect           json,
  end_request_id   text,
  end_digest       text,
  unfinished_at    timestamptz,
  violations       text[]      NOT NULL,
  PRIMARY KEY (tenant, call_id),
  -- One party's retry finds its record.
  UNIQUE (tenant, task_id, reported_by, request_id),
  CHECK ((ended_at IS NULL) = (outcome IS NULL))
);
-- Lists: ids grow with time.
CREATE INDEX tool_calls_of_task ON leasehold.tool_calls (tenant, task_id, call_id);
CREATE INDEX tool_calls_of_agent ON leasehold.tool_calls (tenant, agent, call_id);
CREATE INDEX tool_calls_of_tool ON leasehold.tool_calls (tenant, tool, call_id);
CREATE INDEX tool_calls_raised ON leasehold.tool_calls (tenant, call_id) WHERE violations <> '{}';
-- What has to be marked when its task settles.
CREATE INDEX tool_calls_running ON leasehold.tool_calls (tenant, task_id)
  WHERE ended_at IS NULL AND unfinished_at IS NULL;

-- How many records a task has: a count of its own, so that writing one does not read them all.
CREATE TABLE leasehold.tool_call_counts (
  tenant   text    NOT NULL,
  task_id  text    NOT NULL,
  recorded integer NOT NULL,
  PRIMARY KEY (tenant, task_id)
);

GRANT SELECT, INSERT ON leasehold.tool_calls TO leasehold_broker;
GRANT UPDATE (ended_at, outcome, error, effect, end_request_id, end_digest, unfinished_at, violations)
  ON leasehold.tool_calls TO leasehold_broker;
GRANT SELECT, INSERT ON leasehold.tool_call_counts TO leasehold_broker;
GRANT UPDATE (recorded) ON leasehold.tool_call_counts TO leasehold_broker;
