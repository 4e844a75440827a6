import { parseDuration } from './duration.ts';
import type { VaultConfig, VaultLoginConfig } from './config.ts';
import type { RawVault, RawVaultLogin } from './raw-config.ts';
import { fileSecret, type SecretSource } from './secret-source.ts';

/** How a configuration's relative names become files, and its secrets sources. */
export interface FileNames {
  resolve(relative: string): string;
  optional(relative: string | undefined): string | undefined;
  secret(field: string, fromFile: string | undefined, fromEnv: string | undefined): SecretSource | undefined;
}

type Method = RawVaultLogin['method'];
type Field = Exclude<keyof RawVaultLogin, 'method'>;

/** Where Kubernetes puts the service account's token (https://kubernetes.io/docs/concepts/security/service-accounts). */
const serviceAccountToken = '/var/run/secrets/kubernetes.io/serviceaccount/token';

const fields: Record<Method, { needs: readonly (readonly Field[])[]; takes: readonly Field[] }> = {
  kubernetes: { needs: [['role']], takes: ['mount', 'jwtFile'] },
  jwt: { needs: [['role'], ['jwtFile']], takes: ['mount'] },
  cert: { needs: [], takes: ['mount', 'role'] },
  approle: {
    needs: [
      ['roleIdFile', 'roleIdEnv'],
      ['secretIdFile', 'secretIdEnv'],
    ],
    takes: ['mount'],
  },
  tokenFile: { needs: [['tokenFile']], takes: [] },
};

/** What is wrong with the fields of a login, by the field that it is said at; undefined: the login itself. */
export function vaultLoginFaults(login: RawVaultLogin): { field: Field | undefined; message: string }[] {
  const { needs, takes } = fields[login.method];
  const faults: { field: Field | undefined; message: string }[] = [];
  for (const choices of needs) {
    const given = choices.filter((field) => login[field] !== undefined);
    const names = choices.map((field) => JSON.stringify(field)).join(' or ');
    if (given.length === 0)
      faults.push({ field: undefined, message: `${names} is missing, with method ${login.method}` });
    if (given.length > 1)
      faults.push({ field: given[1], message: `is said beside ${given[0]!}: one of them is enough` });
  }
  const known = new Set<string>([...needs.flat(), ...takes, 'method']);
  for (const field of Object.keys(login) as Field[]) {
    if (!known.has(field)) faults.push({ field, message: `has no meaning with method ${login.method}` });
  }
  return faults;
}

/** Only for what the schema and the rules have checked. */
export function vaultConfig(name: string, of: RawVault, files: FileNames): VaultConfig {
  return {
    address: of.address,
    namespace: of.namespace,
    caFile: files.optional(of.caFile),
    clientCert:
      of.certFile === undefined
        ? undefined
        : { certFile: files.resolve(of.certFile), keyFile: files.resolve(of.keyFile!) },
    login: loginConfig(`vault.${name}.login`, of.login, files),
    tokenRole: of.tokenRole,
    connections: of.connections,
    issueTimeout: parseDuration(of.issueTimeout)!,
    settleTimeout: parseDuration(of.settleTimeout)!,
  };
}

function loginConfig(at: string, login: RawVaultLogin, files: FileNames): VaultLoginConfig {
  const { method, mount = method } = login;
  switch (method) {
    case 'kubernetes':
    case 'jwt': {
      const jwt =
        login.jwtFile === undefined
          ? fileSecret(`${at}.jwtFile`, serviceAccountToken)
          : files.secret(`${at}.jwt`, login.jwtFile, undefined)!;
      return { method, mount, role: login.role!, jwt };
    }
    case 'cert':
      return { method, mount, role: login.role };
    case 'approle':
      return {
        method,
        mount,
        roleId: files.secret(`${at}.roleId`, login.roleIdFile, login.roleIdEnv)!,
        secretId: files.secret(`${at}.secretId`, login.secretIdFile, login.secretIdEnv)!,
      };
    case 'tokenFile':
      return { method, token: files.secret(`${at}.token`, login.tokenFile, undefined)! };
  }
}
