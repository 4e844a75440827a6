import type { DetectorName } from '../domain/detectors/detectors.ts';

/** The document as written, once the schema has checked it and filled in defaults. Kept in step with `config.schema.json`. */
export interface RawConfig {
  broker: { issuer: string };
  server: {
    grpc: RawDoor;
    http: RawDoor & { corsOrigins: string[] };
    limits: {
      maxMessageBytes: number;
      callsPerSecond: number;
      burst: number;
      maxStreams: number;
      maxDeadline: string;
      defaultDeadline: string;
      perTenant: RawTenantLimits;
    };
    shutdownGrace: string;
  };
  database?: { url?: string; urlFile?: string; urlEnv?: string; poolSize: number; caFile?: string };
  keys: {
    sealingKeyFile?: string;
    sealingKeyEnv?: string;
    previousSealingKeyFiles: string[];
    rotateEvery: string;
    publishAhead: string;
    algorithm: 'ES256';
  };
  attestation: {
    audiences: string[];
    maxTokenLifetime: string;
    clockSkew: string;
    trustDomains: {
      name: string;
      tenant: string;
      bundle: { file?: string; url?: string; caFile?: string };
      maxTokenLifetime?: string;
      staleAfter: string;
    }[];
    oidc: {
      issuer: string;
      tenant: string;
      audiences?: string[];
      requiredClaims: Record<string, RawClaim | RawClaim[]>;
      workload: string;
      jwksUri?: string;
      caFile?: string;
      maxTokenLifetime?: string;
      staleAfter: string;
      groupsClaim?: string;
    }[];
  };
  access: {
    workloads: string[];
    roles: ('orchestrator' | 'resource_server' | 'operator' | 'auditor' | 'approver' | 'signal_source')[];
  }[];
  policy: RawPolicySource;
  tenants: Record<
    string,
    {
      policy: RawPolicySource;
      access: RawConfig['access'];
      groups: Record<string, string[]>;
      targets: string[];
      vault: string[];
      webhooks: RawWebhook[];
      limits: Partial<RawTenantLimits>;
    }
  >;
  environment: Record<string, string>;
  tasks: { defaultTtl: string; maxTtl: string; settleBound: string; renewalOverlap: string };
  reconcile: { enabled: boolean; every: string; settle: boolean };
  approvals: {
    groups: Record<string, string[]>;
    maxPending: number;
    requestsPerHour: number;
    webhooks: RawWebhook[];
  };
  calls: { maxPerTask: number };
  signals: {
    maxInForce: number;
    transmitters: RawTransmitter[];
    detectors: Record<
      DetectorName,
      { enabled: boolean; threshold: number; window: string; keep?: string; lock?: boolean }
    >;
  };
  locks: { maxTtl: string; peopleToLift: number };
  targets: Record<string, RawTarget>;
  vault: Record<string, RawVault>;
  log: { level: 'debug' | 'info' | 'warn' | 'error'; format: 'json' | 'text' };
}

export interface RawTenantLimits {
  callsPerSecond: number;
  burst: number;
  maxInFlight: number;
  maxStreams: number;
}

export interface RawWebhook {
  name: string;
  url: string;
  secretFile?: string;
  secretEnv?: string;
  previousSecretFile?: string;
  previousSecretEnv?: string;
  timeout: string;
  caFile?: string;
}

export interface RawPolicySource {
  source: 'directory' | 'database';
  directory?: string;
}

type RawClaim = string | number | boolean;

export interface RawDoor {
  listen: string;
  tls?: { certFile: string; keyFile: string; requestClientCertificate: boolean };
  allowPlaintext: boolean;
}

export interface RawTarget {
  kind: 'postgres';
  host: string;
  port: number;
  database: string;
  user: string;
  passwordFile?: string;
  passwordEnv?: string;
  sslmode: 'verify-full' | 'verify-ca' | 'require' | 'disable';
  caFile?: string;
  poolSize: number;
  issueTimeout: string;
  grantor?: string;
  reassignTo?: string;
  connectHost?: string;
  connectPort?: number;
}

export interface RawTransmitter {
  name: string;
  tenant: string;
  issuer: string;
  audiences: string[];
  jwksUri?: string;
  jwksFile?: string;
  caFile?: string;
  staleAfter: string;
  maxAge: string;
  keep: string;
  perSecond: number;
  burst: number;
  subjects: {
    format: string;
    member?: string;
    require: Record<string, string>;
    workload?: string;
    agent?: string;
    owner?: string;
  }[];
}

export interface RawVault {
  address: string;
  namespace?: string;
  caFile?: string;
  certFile?: string;
  keyFile?: string;
  login: RawVaultLogin;
  tokenRole: string;
  connections: number;
  issueTimeout: string;
  settleTimeout: string;
}

export interface RawVaultLogin {
  method: 'kubernetes' | 'jwt' | 'cert' | 'approle' | 'tokenFile';
  mount?: string;
  role?: string;
  jwtFile?: string;
  roleIdFile?: string;
  roleIdEnv?: string;
  secretIdFile?: string;
  secretIdEnv?: string;
  tokenFile?: string;
}
