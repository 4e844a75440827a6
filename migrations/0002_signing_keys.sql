-- Signing keys of issued tokens. A row exists exactly as long as its public half is in the JWKS.
CREATE TABLE leasehold.signing_keys (
  tenant         text        NOT NULL,
  -- RFC 7638 thumbprint of the public half.
  kid            text        NOT NULL CHECK (length(kid) = 43),
  public_jwk     jsonb       NOT NULL,
  -- PKCS #8, sealed by the broker (src/keys/seal.ts); emptied when the key retires.
  sealed_private bytea,
  state          text        NOT NULL CHECK (state IN ('published', 'active', 'retired')),
  created_at     timestamptz NOT NULL,
  activates_at   timestamptz NOT NULL,
  retires_at     timestamptz NOT NULL,
  delete_at      timestamptz NOT NULL,
  PRIMARY KEY (tenant, kid),
  CHECK (activates_at < retires_at AND retires_at < delete_at),
  CHECK ((state = 'retired') = (sealed_private IS NULL))
);

-- Two replicas that start at once cannot both make an active key, nor two that rotate at once both publish a successor.
CREATE UNIQUE INDEX signing_keys_one_active ON leasehold.signing_keys (tenant) WHERE state = 'active';
CREATE UNIQUE INDEX signing_keys_one_published ON leasehold.signing_keys (tenant) WHERE state = 'published';

GRANT SELECT, INSERT, UPDATE, DELETE ON leasehold.signing_keys TO leasehold_broker;
