import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { sampleGroups, withRoleLock } from './sample-target.ts';
import type { VaultServer } from './vault-server.ts';

export interface VaultDatabaseOptions {
  /** Superuser of the PostgreSQL that holds the target. */
  superuserUrl: string;
  /** A sample target (`prepareSampleTarget`) there. */
  target: string;
  /** Vault's own login at the target; `<target>_vault` when unset. Each Vault needs its own: it gets a new password. */
  user?: string;
  /** Where Vault's database engine is, or comes to be. */
  mount?: string;
  /** In seconds. */
  defaultTtl?: number;
  maxTtl?: number;
}

export interface VaultDatabase {
  mount: string;
  user: string;
  /** Read one of these for a login: `<mount>/creds/read`. */
  roles: readonly ['read', 'write'];
  /** Drops Vault's own login, and the logins that it has left. */
  remove(): Promise<void>;
}

/**
 * Vault's database engine for the sample target. Its login may create roles and grant the two groups, nothing else; what it
 * makes starts with `v-<target>-`.
 */
export async function prepareVaultDatabase(vault: VaultServer, options: VaultDatabaseOptions): Promise<VaultDatabase> {
  const { superuserUrl, target, mount = 'database', defaultTtl = 600, maxTtl = 3_600 } = options;
  // With what Vault adds, a login's name has to stay within PostgreSQL's 63 characters.
  if (!/^[a-z][a-z0-9_]{0,29}$/.test(target)) throw new Error(`${target}: not a plain, short database name`);
  const user = options.user ?? `${target}_vault`;
  const password = randomBytes(24).toString('base64url');
  await withRoleLock(superuserUrl, async (client) => {
    const { rowCount } = await client.query('SELECT FROM pg_roles WHERE rolname = $1', [user]);
    if (rowCount === 0) await client.query(`CREATE ROLE ${user}`);
    await client.query(`ALTER ROLE ${user} LOGIN CREATEROLE PASSWORD '${password}'`);
    const groups = Object.values(sampleGroups).join(', ');
    await client.query(`GRANT ${groups} TO ${user} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE`);
  });
  const mounts = await vault.root('GET', 'sys/mounts');
  if (mounts[`${mount}/`] === undefined) await vault.root('POST', `sys/mounts/${mount}`, { type: 'database' });
  const url = new URL(superuserUrl);
  const at = `${url.hostname}:${url.port || 5432}/${target}`;
  await vault.root('POST', `${mount}/config/${target}`, {
    plugin_name: 'postgresql-database-plugin',
    allowed_roles: [...Object.keys(sampleGroups), 'sweep'],
    connection_url: `postgresql://{{username}}:{{password}}@${at}?sslmode=disable`,
    username: user,
    password,
    password_authentication: 'scram-sha-256',
    // Told apart from what other estates make in the same PostgreSQL, and by the token that made it.
    username_template: `v-${target}-{{ .DisplayName | replace "token-leasehold-" "" }}-{{ .RoleName }}-{{ random 10 | lowercase }}`,
    max_open_connections: 8,
  });
  for (const [role, group] of Object.entries(sampleGroups)) {
    await vault.root('POST', `${mount}/roles/${role}`, {
      db_name: target,
      creation_statements: [
        `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'`,
        `GRANT ${group} TO "{{name}}"`,
      ],
      renew_statements: [`ALTER ROLE "{{name}}" VALID UNTIL '{{expiration}}'`],
      revocation_statements: [revocation],
      default_ttl: defaultTtl,
      max_ttl: maxTtl,
    });
  }
  await vault.root('POST', `${mount}/roles/sweep`, {
    db_name: target,
    creation_statements: [sweepOf(`v-${target}-`.length + tokenNameLength + 1)],
    default_ttl: 60,
    max_ttl: 60,
  });
  return { mount, user, roles: ['read', 'write'], remove: () => removeLogins(superuserUrl, user) };
}

/**
 * Vault's own statements do not end sessions. Any of this may have been done before; to end a role's sessions one has to be a
 * member. One statement, because Vault splits at semicolons unless it sees an END.
 */
const revocation = `DO $revoke$ BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{{name}}') THEN
    ALTER ROLE "{{name}}" NOLOGIN PASSWORD NULL;
    GRANT "{{name}}" TO CURRENT_USER WITH INHERIT TRUE, SET TRUE;
    PERFORM pg_terminate_backend(pid, 2000) FROM pg_stat_activity WHERE usename = '{{name}}';
    DROP OWNED BY "{{name}}";
    DROP ROLE "{{name}}";
  END IF;
END $revoke$`;

/** As providers/vault/make-token.ts names tokens. */
const tokenNameLength = 12;

/** Makes nothing: drops what begins as its own name does, up to the token's name. */
function sweepOf(length: number): string {
  return `DO $sweep$ DECLARE made text; BEGIN
  FOR made IN SELECT rolname FROM pg_roles WHERE starts_with(rolname, left('{{name}}', ${length})) LOOP
    EXECUTE format('ALTER ROLE %I NOLOGIN PASSWORD NULL', made);
    EXECUTE format('GRANT %I TO CURRENT_USER WITH INHERIT TRUE, SET TRUE', made);
    PERFORM pg_terminate_backend(pid, 2000) FROM pg_stat_activity WHERE usename = made;
    EXECUTE format('DROP OWNED BY %I', made);
    EXECUTE format('DROP ROLE %I', made);
  END LOOP;
END $sweep$`;
}

async function removeLogins(superuserUrl: string, user: string): Promise<void> {
  await withRoleLock(superuserUrl, async (client) => {
    const { rows } = await client.query<{ name: string }>(
      `SELECT DISTINCT m.rolname AS name FROM pg_auth_members AS a
         JOIN pg_roles AS g ON g.oid = a.grantor JOIN pg_roles AS m ON m.oid = a.member
        WHERE g.rolname = $1 AND m.rolname <> $1`,
      [user],
    );
    for (const { name } of rows) await client.query(`DROP ROLE IF EXISTS ${pg.escapeIdentifier(name)}`);
    await client.query(`DROP ROLE IF EXISTS ${user}`);
  });
}
