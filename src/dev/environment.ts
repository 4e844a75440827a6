import { randomBytes } from 'node:crypto';
import { cp, mkdir, writeFile } from 'node:fs/promises';
import { existsSync } from 'node:fs';
import path from 'node:path';
import pg from 'pg';
import { stringify } from 'yaml';
import { migrate } from '../storage/migrate.ts';
import { prepareSampleTarget, type SampleTarget } from './sample-target.ts';
import { openDevTrustDomain, type DevTrustDomain } from './trust-domain.ts';

export interface DevEnvironmentOptions {
  /** Everything is kept here, secrets with mode 0600. */
  dir: string;
  /** Superuser of a PostgreSQL of our own. */
  superuserUrl: string;
  /** Superuser of the PostgreSQL that holds the sample target, when that is another one. */
  targetSuperuserUrl?: string;
  /** Names of the two databases: the broker's own, and the sample target. */
  database: string;
  target: string;
  grpcPort: number;
  httpPort: number;
  /** Merged over the generated configuration, section by section. */
  overrides?: Record<string, object>;
}

export interface DevEnvironment {
  configFile: string;
  policyDir: string;
  trustDomain: DevTrustDomain;
  target: SampleTarget;
  /** The broker's own login. */
  brokerUrl: string;
}

export const devTrustDomainName = 'dev.leasehold.test';
const examples = path.join(import.meta.dirname, '..', '..', 'examples', 'quickstart');

/** Makes all that a broker needs to run on this machine; what exists already is kept, but for the database passwords. */
export async function prepareDevEnvironment(options: DevEnvironmentOptions): Promise<DevEnvironment> {
  const { dir } = options;
  await mkdir(dir, { recursive: true, mode: 0o700 });
  const brokerUrl = await prepareBrokerDatabase(options.superuserUrl, options.database);
  const target = await prepareSampleTarget(options.targetSuperuserUrl ?? options.superuserUrl, options.target);
  const trustDomain = await openDevTrustDomain(path.join(dir, 'trust-domain'), devTrustDomainName);
  const secret = async (name: string, value: string) => {
    const file = path.join(dir, name);
    await writeFile(file, value, { mode: 0o600 });
    return file;
  };
  const sealingKeyFile = path.join(dir, 'sealing-key');
  if (!existsSync(sealingKeyFile)) await secret('sealing-key', randomBytes(32).toString('base64'));
  const policyDir = path.join(dir, 'policy');
  if (!existsSync(policyDir)) await cp(path.join(examples, 'policy'), policyDir, { recursive: true });

  const config: Record<string, unknown> = {
    apiVersion: 'leasehold.dev/v1',
    kind: 'Config',
    broker: { issuer: `http://127.0.0.1:${options.httpPort}` },
    server: {
      grpc: { listen: `127.0.0.1:${options.grpcPort}` },
      http: { listen: `127.0.0.1:${options.httpPort}` },
    },
    database: { urlFile: await secret('database-url', brokerUrl) },
    keys: { sealingKeyFile },
    attestation: { trustDomains: [{ name: devTrustDomainName, bundle: { file: trustDomain.bundlePath } }] },
    access: [
      { workloads: [devWorkload('orchestrator')], roles: ['orchestrator'] },
      { workloads: [devWorkload('operator')], roles: ['operator'] },
      { workloads: [devWorkload('auditor')], roles: ['auditor'] },
      { workloads: [devWorkload('approver/*')], roles: ['approver'] },
      { workloads: [devWorkload('tool/*')], roles: ['resource_server'] },
      { workloads: [devWorkload('scanner')], roles: ['signal_source'] },
    ],
    policy: { directory: policyDir },
    targets: {
      warehouse: {
        kind: 'postgres',
        host: target.host,
        port: target.port,
        database: target.database,
        user: target.user,
        grantor: target.grantor,
        passwordFile: await secret('target-password', target.password),
        sslmode: 'disable',
      },
    },
  };
  for (const [section, value] of Object.entries(options.overrides ?? {})) {
    config[section] = Array.isArray(value) ? value : { ...(config[section] as object | undefined), ...value };
  }
  const configFile = path.join(dir, 'leasehold.yaml');
  await writeFile(configFile, `# Made by \`leasehold dev\` at each start.\n${stringify(config)}`, { mode: 0o600 });
  return { configFile, policyDir, trustDomain, target, brokerUrl };
}

export function devWorkload(name: string): string {
  return `spiffe://${devTrustDomainName}/${name}`;
}

async function prepareBrokerDatabase(superuserUrl: string, name: string): Promise<string> {
  if (!/^[a-z][a-z0-9_]{0,40}$/.test(name)) throw new Error(`${name}: not a plain database name`);
  const login = `${name}_app`;
  const password = randomBytes(24).toString('base64url');
  const client = new pg.Client({ connectionString: superuserUrl, connectionTimeoutMillis: 10_000 });
  await client.connect();
  const url = new URL(superuserUrl);
  url.pathname = `/${name}`;
  try {
    const { rowCount } = await client.query('SELECT FROM pg_database WHERE datname = $1', [name]);
    if (rowCount === 0) await client.query(`CREATE DATABASE ${name}`);
    await migrate(url.href);
    const existing = await client.query('SELECT FROM pg_roles WHERE rolname = $1', [login]);
    if (existing.rowCount === 0) await client.query(`CREATE ROLE ${login} LOGIN IN ROLE leasehold_broker`);
    await client.query(`ALTER ROLE ${login} PASSWORD '${password}'`);
  } finally {
    await client.end();
  }
  url.username = login;
  url.password = password;
  return url.href;
}
