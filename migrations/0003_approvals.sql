-- Approvals, the words of those who decide, what was issued on them, and the messages that tell people.

CREATE TABLE leasehold.approvals (
  tenant           text        NOT NULL,
  approval_id      text        NOT NULL,
  -- What belongs together and can be decided together: the first one's id.
  group_id         text        NOT NULL,
  kind             text        NOT NULL CHECK (kind IN ('request', 'break_glass')),
  state            text        NOT NULL DEFAULT 'pending'
    CHECK (state IN ('pending', 'approved', 'used', 'expired', 'denied', 'timed_out', 'cancelled')),
  task_id          text        NOT NULL,
  intent           text        NOT NULL,
  opener           text        NOT NULL,
  agent            text        NOT NULL,
  workload         text,
  tool             text        NOT NULL,
  tier             text        NOT NULL CHECK (tier IN ('read', 'write', 'execute')),
  -- text: the canonical bytes (RFC 8785) that the digest is over.
  arguments        text        NOT NULL,
  arguments_digest text        NOT NULL,
  policy_revision  text        NOT NULL,
  policy_rule      text        NOT NULL,
  reason           text        NOT NULL,
  justification    text        NOT NULL,
  quorums          jsonb       NOT NULL,
  -- All names of the quorums, for the list of those who may decide.
  approvers        text[]      NOT NULL,
  -- Requesters: they never decide.
  excluded         text[]      NOT NULL,
  uses             integer     NOT NULL CHECK (uses > 0),
  uses_left        integer     NOT NULL CHECK (uses_left BETWEEN 0 AND uses),
  valid_for_ms     bigint      NOT NULL,
  cool_down_ms     bigint      NOT NULL,
  requested_by     text        NOT NULL,
  requested_at     timestamptz NOT NULL,
  decide_by        timestamptz NOT NULL,
  decided_at       timestamptz,
  expires_at       timestamptz,
  cool_down_until  timestamptz,
  PRIMARY KEY (tenant, approval_id),
  CHECK ((state = 'used') = (uses_left = 0)),
  CHECK (state NOT IN ('approved', 'used', 'expired') OR expires_at IS NOT NULL)
);
-- The same exact request is asked once, and finds its approval.
CREATE UNIQUE INDEX approvals_live ON leasehold.approvals
  (tenant, task_id, tool, tier, arguments_digest, policy_revision)
  WHERE kind = 'request' AND state IN ('pending', 'approved');
CREATE UNIQUE INDEX approvals_emergency ON leasehold.approvals (tenant, task_id, tool, tier)
  WHERE kind = 'break_glass' AND state IN ('pending', 'approved');
-- Cool-down, and a task's list.
CREATE INDEX approvals_of_task ON leasehold.approvals (tenant, task_id, approval_id);
CREATE INDEX approvals_of_group ON leasehold.approvals (tenant, group_id);
-- How many an agent has asked for lately.
CREATE INDEX approvals_of_agent ON leasehold.approvals (tenant, agent, requested_at);
-- The list of one who decides.
CREATE INDEX approvals_of_approver ON leasehold.approvals USING gin (approvers);
-- The worker that ends what nobody decided or used in time.
CREATE INDEX approvals_due ON leasehold.approvals (COALESCE(expires_at, decide_by)) WHERE state IN ('pending', 'approved');

CREATE TABLE leasehold.approval_votes (
  tenant      text        NOT NULL,
  approval_id text        NOT NULL,
  approver    text        NOT NULL,
  verdict     text        NOT NULL CHECK (verdict IN ('approve', 'deny')),
  comment     text        NOT NULL,
  -- Positions of the quorums that it counts for: membership is judged when the word is given.
  quorums     integer[]   NOT NULL,
  voted_at    timestamptz NOT NULL,
  -- One person, one word.
  PRIMARY KEY (tenant, approval_id, approver)
);

CREATE TABLE leasehold.approval_uses (
  tenant      text        NOT NULL,
  lease_id    text        NOT NULL,
  approval_id text        NOT NULL,
  used_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (tenant, lease_id)
);

-- The outbox of webhooks: a message is written with the act that it tells of.
CREATE TABLE leasehold.notifications (
  tenant          text        NOT NULL,
  notification_id text        NOT NULL,
  endpoint        text        NOT NULL,
  type            text        NOT NULL,
  payload         text        NOT NULL,
  created_at      timestamptz NOT NULL,
  due_at          timestamptz NOT NULL,
  attempts        integer     NOT NULL DEFAULT 0,
  last_error      text,
  delivered_at    timestamptz,
  given_up_at     timestamptz,
  PRIMARY KEY (tenant, notification_id, endpoint)
);
CREATE INDEX notifications_due ON leasehold.notifications (due_at) WHERE delivered_at IS NULL AND given_up_at IS NULL;
CREATE INDEX notifications_done ON leasehold.notifications (created_at)
  WHERE delivered_at IS NOT NULL OR given_up_at IS NOT NULL;

GRANT SELECT, INSERT, UPDATE ON leasehold.approvals TO leasehold_broker;
GRANT SELECT, INSERT, UPDATE ON leasehold.approval_votes TO leasehold_broker;
-- DELETE: a use is given back when its credential could not be made and nobody received it.
GRANT SELECT, INSERT, DELETE ON leasehold.approval_uses TO leasehold_broker;
GRANT SELECT, INSERT, UPDATE, DELETE ON leasehold.notifications TO leasehold_broker;
