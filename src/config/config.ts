import type { Role } from '../domain/caller.ts';
import type { DetectorSettings } from '../domain/detectors/detector.ts';
import type { DetectorName } from '../domain/detectors/detectors.ts';
import type { Millis } from '../domain/time.ts';
import type { SecretSource } from './secret-source.ts';

/** One validated configuration. Durations are milliseconds, paths absolute, secrets only named. Frozen. */
export interface Config {
  /** The file that it came from. */
  file: string;
  broker: { issuer: string };
  server: {
    grpc: DoorConfig;
    http: DoorConfig & { corsOrigins: readonly string[] };
    limits: LimitsConfig;
    shutdownGrace: Millis;
  };
  /** Absent: only `leasehold dev` runs, on an embedded PostgreSQL. */
  database: DatabaseConfig | undefined;
  keys: KeysConfig;
  attestation: AttestationConfig;
  /** `default` first. */
  tenants: readonly TenantConfig[];
  /** Facts about this installation that conditions may look at. */
  environment: Readonly<Record<string, string>>;
  tasks: { defaultTtl: Millis; maxTtl: Millis; settleBound: Millis; renewalOverlap: Millis };
  /** Comparing leases with what their targets hold, now and then. */
  reconcile: { enabled: boolean; every: Millis; settle: boolean };
  approvals: ApprovalsConfig;
  /** Most records of tool calls in one task. */
  calls: { maxPerTask: number };
  signals: SignalsConfig;
  locks: { maxTtl: Millis; peopleToLift: number };
  targets: Readonly<Record<string, TargetConfig>>;
  vault: Readonly<Record<string, VaultConfig>>;
  log: { level: 'debug' | 'info' | 'warn' | 'error'; format: 'json' | 'text' };
}

/** A directory on this machine drives policy, or what operators apply through the API. */
export type PolicySourceConfig = { source: 'directory'; directory: string } | { source: 'database' };

/** What is a tenant's own. Nothing of one is visible to another. */
export interface TenantConfig {
  name: string;
  /** Issuer of its tokens. */
  issuer: string;
  policy: PolicySourceConfig;
  access: readonly AccessGrant[];
  /** Who is in a group that may approve. */
  groups: Readonly<Record<string, readonly string[]>>;
  /** Names of the targets and of the Vault servers that its tools may use. */
  targets: readonly string[];
  vault: readonly string[];
  /** Told of its approvals and of nobody else's. */
  webhooks: readonly WebhookConfig[];
  /** On all its workloads together, on each replica. */
  limits: TenantLimitsConfig;
}

export interface TenantLimitsConfig {
  callsPerSecond: number;
  burst: number;
  maxInFlight: number;
  maxStreams: number;
}

export interface DoorConfig {
  host: string;
  port: number;
  tls: { certFile: string; keyFile: string; requestClientCertificate: boolean } | undefined;
  allowPlaintext: boolean;
}

/** Bounds on each caller. */
export interface LimitsConfig {
  maxMessageBytes: number;
  callsPerSecond: number;
  burst: number;
  maxStreams: number;
  maxDeadline: Millis;
  defaultDeadline: Millis;
}

export interface DatabaseConfig {
  url: SecretSource;
  poolSize: number;
  caFile: string | undefined;
}

export interface KeysConfig {
  /** Absent: only `leasehold dev` runs, with a key of its own making. */
  sealingKey: SecretSource | undefined;
  /** Earlier ones, which still open what they sealed. */
  previousSealingKeys: readonly SecretSource[];
  rotateEvery: Millis;
  publishAhead: Millis;
  algorithm: 'ES256';
}

export interface AttestationConfig {
  clockSkew: Millis;
  trustDomains: readonly TrustDomainConfig[];
  oidc: readonly OidcConfig[];
}

export interface TrustDomainConfig {
  name: string;
  tenant: string;
  audiences: readonly string[];
  maxTokenLifetime: Millis;
  bundle: { file: string } | { url: string; caFile: string | undefined };
  staleAfter: Millis;
}

export interface OidcConfig {
  issuer: string;
  tenant: string;
  audiences: readonly string[];
  maxTokenLifetime: Millis;
  /** Each claim with the values that will do. */
  requiredClaims: Readonly<Record<string, readonly string[]>>;
  workload: string;
  jwksUri: string | undefined;
  caFile: string | undefined;
  staleAfter: Millis;
  /** Claim that lists the caller's groups; undefined: the issuer's groups count for nothing. */
  groupsClaim: string | undefined;
}

/** `agent` is not granted here: policy's Agent documents say which workloads act as which agent. */
export type GrantedRole = Exclude<Role, 'agent'>;

export interface AccessGrant {
  workloads: readonly string[];
  roles: readonly GrantedRole[];
}

export interface PostgresTargetConfig {
  kind: 'postgres';
  host: string;
  port: number;
  database: string;
  user: string;
  password: SecretSource;
  sslmode: 'verify-full' | 'verify-ca' | 'require' | 'disable';
  caFile: string | undefined;
  poolSize: number;
  issueTimeout: Millis;
  grantor: string | undefined;
  reassignTo: string | undefined;
  /** What agents are told. */
  connect: { host: string; port: number };
}

export type TargetConfig = PostgresTargetConfig;

export interface VaultConfig {
  address: string;
  namespace: string | undefined;
  caFile: string | undefined;
  clientCert: { certFile: string; keyFile: string } | undefined;
  login: VaultLoginConfig;
  tokenRole: string;
  connections: number;
  issueTimeout: Millis;
  settleTimeout: Millis;
}

export type VaultLoginConfig =
  | { method: 'kubernetes' | 'jwt'; mount: string; role: string; jwt: SecretSource }
  | { method: 'cert'; mount: string; role: string | undefined }
  | { method: 'approle'; mount: string; roleId: SecretSource; secretId: SecretSource }
  | { method: 'tokenFile'; token: SecretSource };

export interface ApprovalsConfig {
  /** Most requests of one task that wait for people at once. */
  maxPending: number;
  /** Most requests of one agent in an hour. */
  requestsPerHour: number;
}

export interface SignalsConfig {
  /** Most signals in force in a tenant. */
  maxInForce: number;
  transmitters: readonly TransmitterConfig[];
  detectors: Readonly<Record<DetectorName, DetectorSettings>>;
}

/** Who may push security event tokens. */
export interface TransmitterConfig {
  name: string;
  tenant: string;
  issuer: string;
  audiences: readonly string[];
  jwksUri: string | undefined;
  jwksFile: string | undefined;
  caFile: string | undefined;
  staleAfter: Millis;
  maxAge: Millis;
  keep: Millis;
  perSecond: number;
  burst: number;
  subjects: readonly SubjectRuleConfig[];
}

export interface SubjectRuleConfig {
  format: string;
  member: string | undefined;
  require: Readonly<Record<string, string>>;
  workload: string | undefined;
  agent: string | undefined;
  owner: string | undefined;
}

export interface WebhookConfig {
  name: string;
  url: string;
  secret: SecretSource;
  /** The one that it replaces; both sign while it is configured. */
  previousSecret: SecretSource | undefined;
  timeout: Millis;
  caFile: string | undefined;
}
