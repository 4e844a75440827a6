import { toJson } from '@bufbuild/protobuf';
import {
  CredentialSchema,
  type Credential,
  type PostgresLogin,
  type VaultSecret,
} from '../gen/leasehold/v1/credential_service_pb.js';
import type { MaterialFormat } from './material-options.ts';
import { tierName } from './names.ts';
import { fields, iso, moment } from './output.ts';

/** The answer as protobuf JSON; every response that carries a credential has this one shape. */
export function credentialJson(credential: Credential): string {
  return JSON.stringify({ credential: toJson(CredentialSchema, credential, { alwaysEmitImplicit: true }) });
}

/** The credential in the form that its user reads. Undefined when that form cannot hold this kind of credential. */
export function renderMaterial(credential: Credential, format: MaterialFormat): string | undefined {
  const { material } = credential;
  switch (format) {
    case 'json':
      return `${credentialJson(credential)}\n`;
    case 'token':
      return material.case === 'accessToken' ? `${material.value.token}\n` : undefined;
    case 'pgpass':
      return material.case === 'postgresLogin' ? pgpassLine(material.value) : undefined;
    case 'env':
      return envLines(credential);
  }
}

/** https://www.postgresql.org/docs/current/libpq-pgpass.html: `:` and `\` are escaped. */
function pgpassLine(login: PostgresLogin): string {
  const parts = [login.host, String(login.port), login.database, login.username, login.password];
  return `${parts.map((part) => part.replace(/[\\:]/g, '\\$&')).join(':')}\n`;
}

function envLines(credential: Credential): string | undefined {
  const variables = materialVariables(credential);
  if (variables === undefined) return undefined;
  const all = {
    ...variables,
    LEASEHOLD_LEASE_ID: credential.lease?.leaseId ?? '',
    ...(credential.renewAfter === undefined ? {} : { LEASEHOLD_RENEW_AFTER: iso(credential.renewAfter) }),
  };
  // Single quotes hold everything but themselves, in every POSIX shell.
  return Object.entries(all)
    .map(([name, value]) => `export ${name}='${value.replaceAll("'", "'\\''")}'\n`)
    .join('');
}

function materialVariables({ material }: Credential): Record<string, string> | undefined {
  if (material.case === 'accessToken') return { LEASEHOLD_ACCESS_TOKEN: material.value.token };
  if (material.case === 'vaultSecret') return secretVariables(material.value);
  // Names that Vault's own command line reads: `vault unwrap` fetches the secret.
  if (material.case === 'wrappedSecret') {
    const { token, address, namespace } = material.value;
    return { VAULT_ADDR: address, VAULT_TOKEN: token, ...(namespace === '' ? {} : { VAULT_NAMESPACE: namespace }) };
  }
  if (material.case !== 'postgresLogin') return undefined;
  const { host, port, database, username, password, sslmode } = material.value;
  return {
    PGHOST: host,
    PGPORT: String(port),
    PGDATABASE: database,
    PGUSER: username,
    PGPASSWORD: password,
    ...(sslmode === '' ? {} : { PGSSLMODE: sslmode }),
  };
}

/** One variable for each field: `secret_key` becomes LEASEHOLD_SECRET_SECRET_KEY. What is no text is JSON. */
function secretVariables({ data }: VaultSecret): Record<string, string> {
  return Object.fromEntries(
    Object.entries(data ?? {}).map(([name, value]) => [
      `LEASEHOLD_SECRET_${name.toUpperCase().replaceAll(/[^A-Z0-9]/g, '_')}`,
      fieldText(value),
    ]),
  );
}

function fieldText(value: unknown): string {
  return typeof value === 'string' ? value : JSON.stringify(value);
}

/** For a person: the lease, and, unless it went to a file, the material that was asked for. */
export function showCredential(credential: Credential, withMaterial: boolean): void {
  const { lease } = credential;
  fields([
    ['lease', lease?.leaseId],
    ['tool', lease === undefined ? '' : `${lease.tool}:${tierName(lease.tier)}`],
    ['expires', moment(lease?.expireTime)],
    ['renew after', moment(credential.renewAfter)],
    ['allowed by', lease?.policyRule],
    ...(withMaterial ? materialFields(credential) : []),
  ]);
}

function materialFields({ material }: Credential): [string, string][] {
  if (material.case === 'accessToken') return [['token', material.value.token]];
  if (material.case === 'vaultSecret') {
    return Object.entries(material.value.data ?? {}).map(([name, value]) => [name, fieldText(value)]);
  }
  if (material.case === 'wrappedSecret') {
    const { token, address, unwrapBefore } = material.value;
    return Object.entries({ 'wrapping token': token, 'vault address': address, 'unwrap before': moment(unwrapBefore) });
  }
  if (material.case !== 'postgresLogin') return [];
  const { host, port, database, username, password, sslmode } = material.value;
  return Object.entries({ host, port: String(port), database, username, password, sslmode });
}
