import type pg from 'pg';
import type { AuditEvent } from '../domain/audit.ts';
import { BrokerError } from '../domain/errors.ts';
import type { Activation, NewActivation, NewRevision, PolicyStore, RevisionRecord } from '../domain/revisions.ts';
import { guarded, transaction } from './pool.ts';
import { auditColumns, auditInsert, auditSelect, auditUnnest } from './rows.ts';
import { policyChannel } from './wake.ts';

type Row = Record<string, unknown>;

/**
 * Activations of all tenants are numbered by one sequence. A tenant is shown its own count: its activations are written one
 * after the other (`activate`), so that the count of one never changes.
 */
const activationSelect = `SELECT a.*, (SELECT count(*) FROM policy_activations c
    WHERE c.tenant = a.tenant AND c.activation_id <= a.activation_id) AS ordinal, r.decided, r.ended, r.finished_at, r.tenant IS NOT NULL AS reevaluated
  FROM policy_activations a LEFT JOIN policy_reevaluations r USING (tenant, activation_id)`;

export function createPolicyStore(pool: pg.Pool): PolicyStore {
  return {
    recordRevision: (tenant, revision) => guarded(() => recordRevision(pool, tenant, revision)),
    activate: (activation, event) => activate(pool, activation, event),

    active: (tenant) =>
      guarded(async () => {
        // The primary key, backwards.
        const { rows } = await pool.query({
          name: 'active-policy',
          text: `${activationSelect} WHERE a.tenant = $1 ORDER BY a.activation_id DESC LIMIT 1`,
          values: [tenant],
        });
        return rows[0] && activationFromRow(rows[0] as Row);
      }),

    byRequest: (tenant, actor, requestId) => guarded(() => byRequest(pool, tenant, actor, requestId)),

    activations: (tenant, pageSize, after) =>
      guarded(async () => {
        const { rows } = await pool.query(
          `${activationSelect} WHERE a.tenant = $1 AND ($2::bigint IS NULL OR a.activation_id < (
             SELECT activation_id FROM policy_activations WHERE tenant = $1 ORDER BY activation_id OFFSET $2 - 1 LIMIT 1))
           ORDER BY a.activation_id DESC LIMIT $3`,
          [tenant, after ?? null, pageSize + 1],
        );
        const items = rows.slice(0, pageSize).map((row) => activationFromRow(row as Row));
        return { items, next: rows.length > pageSize ? items.at(-1)!.activationId : undefined };
      }),

    find: (tenant, beginning) =>
      guarded(async () => {
        // The primary key; `sha256:` and hexadecimal digits hold nothing that LIKE would read as a pattern.
        const { rows } = await pool.query(
          `SELECT digest, first_used, creator, source, message FROM tenant_policy_revisions
           WHERE tenant = $1 AND digest COLLATE "C" LIKE $2 ORDER BY digest LIMIT 2`,
          [tenant, `${beginning}%`],
        );
        return rows.map((row) => revisionFromRow(row as Row));
      }),

    revisions: (tenant, pageSize, after) =>
      guarded(async () => {
        // Index tenant_policy_revisions_newest. The page token is where the page before ended.
        const [time, digest] = (after ?? '').split(' ');
        const { rows } = await pool.query(
          `SELECT digest, first_used, creator, source, message FROM tenant_policy_revisions
           WHERE tenant = $4 AND ($1::float8 IS NULL OR (first_used, digest) <> (to_timestamp($1 / 1000), $2) AND
             (first_used < to_timestamp($1 / 1000) OR (first_used = to_timestamp($1 / 1000) AND digest > $2)))
           ORDER BY first_used DESC, digest LIMIT $3`,
          [after === undefined ? null : Number(time), digest ?? '', pageSize + 1, tenant],
        );
        const items = rows.slice(0, pageSize).map((row) => revisionFromRow(row as Row));
        const last = items.at(-1);
        return { items, next: rows.length > pageSize ? `${last!.createdAt} ${last!.digest}` : undefined };
      }),

    documents: (digest) =>
      guarded(async () => {
        const { rows } = await pool.query<{ documents: string }>({
          name: 'policy-documents',
          text: 'SELECT documents FROM policy_revisions WHERE digest = $1',
          values: [digest],
        });
        return rows[0]?.documents;
      }),
  };
}

/** The documents once, however many tenants have the same; who made them a revision, for each. */
async function recordRevision(pool: pg.Pool, tenant: string, revision: NewRevision): Promise<void> {
  await pool.query(
    `WITH documents AS (
       INSERT INTO policy_revisions (digest, documents, first_used, creator, source, message)
       VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING
     )
     INSERT INTO tenant_policy_revisions (tenant, digest, first_used, creator, source, message)
     VALUES ($7, $1, $3, $4, $5, $6) ON CONFLICT DO NOTHING`,
    [
      revision.digest,
      revision.documents,
      new Date(revision.createdAt),
      revision.creator,
      revision.source,
      revision.message,
      tenant,
    ],
  );
}

/** One after the other: two that apply at once must not both believe that theirs followed the one they looked at. */
async function activate(pool: pg.Pool, activation: NewActivation, event: AuditEvent): Promise<Activation | undefined> {
  const { tenant } = activation;
  return await transaction(pool, async (client) => {
    await client.query('SELECT pg_advisory_xact_lock(hashtextextended($1, 0))', [`leasehold policy ${tenant}`]);
    if (activation.requestId !== undefined) {
      const earlier = await byRequest(client, tenant, activation.actor, activation.requestId);
      if (earlier !== undefined) return earlier;
    }
    const { rows: newest } = await client.query<{ digest: string }>(
      'SELECT digest FROM policy_activations WHERE tenant = $1 ORDER BY activation_id DESC LIMIT 1',
      [tenant],
    );
    const running = newest[0]?.digest;
    if (activation.expected !== undefined && running !== activation.expected) return undefined;
    const { rows } = await client.query<{ activation_id: string }>(
      `INSERT INTO policy_activations (tenant, digest, actor, source, message, request_id)
       VALUES ($1, $2, $3, $4, $5, $6) RETURNING activation_id`,
      [
        tenant,
        activation.digest,
        activation.actor,
        activation.source,
        activation.message,
        activation.requestId ?? null,
      ],
    );
    const activationId = rows[0]!.activation_id;
    if (activation.reevaluate) {
      await client.query('INSERT INTO policy_reevaluations (tenant, activation_id) VALUES ($1, $2)', [
        tenant,
        activationId,
      ]);
    }
    const { rows: written } = await client.query(`${activationSelect} WHERE a.tenant = $1 AND a.activation_id = $2`, [
      tenant,
      activationId,
    ]);
    if (written[0] === undefined) throw new BrokerError('STORAGE_UNAVAILABLE', 'the activation was not written: retry');
    const made = activationFromRow(written[0] as Row);
    const logged = {
      ...event,
      detail: { ...event.detail, activation_id: made.activationId, before: running ?? null },
    };
    await client.query(`${auditInsert} ${auditSelect} FROM ${auditUnnest(1)}`, auditColumns([logged]));
    await client.query('SELECT pg_notify($1, $2)', [policyChannel, tenant]);
    return made;
  });
}

async function byRequest(
  client: Pick<pg.ClientBase, 'query'> | pg.Pool,
  tenant: string,
  actor: string,
  requestId: string,
): Promise<Activation | undefined> {
  const { rows } = await client.query(
    `${activationSelect} WHERE a.tenant = $1 AND a.actor = $2 AND a.request_id = $3`,
    [tenant, actor, requestId],
  );
  return rows[0] && activationFromRow(rows[0] as Row);
}

function revisionFromRow(row: Row): RevisionRecord {
  return {
    digest: row.digest as string,
    createdAt: (row.first_used as Date).getTime(),
    creator: row.creator as string,
    source: row.source as RevisionRecord['source'],
    message: row.message as string,
  };
}

function activationFromRow(row: Row): Activation {
  return {
    activationId: String(row.ordinal),
    digest: row.digest as string,
    activatedAt: (row.activated_at as Date).getTime(),
    actor: row.actor as string,
    source: row.source as Activation['source'],
    message: row.message as string,
    reevaluation:
      row.reevaluated === true
        ? {
            decided: Number(row.decided),
            ended: Number(row.ended),
            finishedAt: row.finished_at === null ? undefined : (row.finished_at as Date).getTime(),
          }
        : undefined,
  };
}
