import { createHash } from 'node:crypto';
import { open, rename, rm } from 'node:fs/promises';
import type { EvidenceSummary, ExportEvidenceResponse } from '../gen/leasehold/v1/audit_service_pb.js';
import { CliError } from './cli-error.ts';

/** A credential that is, or may be, still good. */
export interface Alive {
  leaseId: string;
  taskId: string;
  tool: string;
  tier: string;
  /** Why nobody can say that it is dead. */
  because: string;
  until: string;
}

export interface Evidence {
  file: string;
  summary: EvidenceSummary;
  alive: Alive[];
}

const mostTold = 1_000;

/** Writes an export to a new file that only its owner reads, whole or not at all, and checks the digest that came with it. */
export async function writeEvidence(
  path: string,
  parts: AsyncIterable<ExportEvidenceResponse>,
  now: number,
  progress: (records: number) => void,
): Promise<Evidence> {
  const hash = createHash('sha256');
  const temporary = `${path}.partial`;
  const alive: Alive[] = [];
  let summary: EvidenceSummary | undefined;
  let records = 0;
  // Not over an earlier one: evidence is not replaced.
  const taken = await open(path, 'wx', 0o600).catch((error: Error) => {
    throw unwritable(path, error.message);
  });
  await taken.close();
  try {
    const file = await open(temporary, 'w', 0o600);
    try {
      for await (const { part } of parts) {
        if (part.case === 'summary') summary = part.value;
        if (part.case !== 'lines') continue;
        await file.writeFile(part.value);
        hash.update(part.value);
        for (const line of part.value.split('\n')) {
          if (line === '') continue;
          records++;
          if (line.startsWith('{"type":"lease"') && alive.length < mostTold) alive.push(...stillAlive(line, now));
        }
        progress(records);
      }
      await file.sync();
    } finally {
      await file.close();
    }
    if (summary === undefined) throw broken('the export ended before its summary');
    if (summary.digest !== `sha256:${hash.digest('hex')}`)
      throw broken('the lines do not match the digest of the broker');
    await rename(temporary, path);
  } catch (error) {
    await Promise.all([rm(temporary, { force: true }), rm(path, { force: true })]);
    throw error;
  }
  return { file: path, summary, alive };
}

interface LeaseRecord {
  lease_id: string;
  task_id: string;
  tool: string;
  tier: string;
  state: string;
  outcome: string | null;
  revocation_kind: string;
  expires_at: string;
  dead_by: string | null;
}

function stillAlive(line: string, now: number): Alive[] {
  const lease = JSON.parse(line) as LeaseRecord;
  const until = lease.dead_by ?? lease.expires_at;
  const because =
    lease.outcome === 'irrevocable'
      ? 'could not be revoked'
      : lease.state !== 'settled'
        ? 'not settled yet'
        : lease.outcome === 'bounded'
          ? 'nothing can revoke it'
          : undefined;
  if (because === undefined || (lease.state === 'settled' && Date.parse(until) <= now)) return [];
  const { lease_id: leaseId, task_id: taskId, tool, tier } = lease;
  return [{ leaseId, taskId, tool, tier, because, until }];
}

function unwritable(path: string, why: string): CliError {
  return new CliError('usage', `${path} cannot be written (${why}); choose another --evidence`, {
    reason: 'OUTPUT_UNWRITABLE',
  });
}

function broken(why: string): CliError {
  return new CliError('unavailable', `${why}; the lock is in force, run the command again for the evidence`, {
    reason: 'EVIDENCE_BROKEN',
  });
}
