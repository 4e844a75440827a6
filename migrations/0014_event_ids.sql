-- Numbers of audit events are of one sequence for all tenants: how far apart two of one tenant are says how much the others
-- do. Callers get them enciphered, with a key of their tenant's. The key keeps them from callers and from nobody else:
-- whoever reads this table reads the numbers themselves in audit_events. Hence it is not sealed.
CREATE TABLE leasehold.event_id_keys (
  tenant text  PRIMARY KEY,
  key    bytea NOT NULL CHECK (length(key) = 16)
);
GRANT SELECT, INSERT ON leasehold.event_id_keys TO leasehold_broker;
