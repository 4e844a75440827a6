import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { onTestFinished } from 'vitest';
import { ConfigError, formatIssue } from '../../src/config/issue.ts';
import type { Issue } from '../../src/config/issue.ts';
import { loadConfig } from '../../src/config/load-config.ts';

export function temporaryFolder(): string {
  const folder = mkdtempSync(path.join(tmpdir(), 'leasehold-config-'));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** The least that is a configuration; `more` is put in front, so that its lines count from 1. */
export const minimal = `apiVersion: leasehold.dev/v1
kind: Config
broker: { issuer: https://broker.acme.test }
attestation: { trustDomains: [{ name: acme.test, bundle: { file: bundle.json } }] }
policy: { directory: policy }
`;

export function write(text: string): string {
  const file = path.join(temporaryFolder(), 'leasehold.yaml');
  writeFileSync(file, text);
  return file;
}

export function load(text: string, env: Record<string, string> = {}) {
  return loadConfig({ path: write(text), env });
}

/** The complaints about a configuration, each as `line:column: field: what; hint`. */
export function complaints(text: string): string[] {
  const file = write(text);
  try {
    loadConfig({ path: file, env: {} });
  } catch (error) {
    if (error instanceof ConfigError) return error.issues.map((issue) => shown(issue, file));
    throw error;
  }
  return [];
}

function shown(issue: Issue, file: string): string {
  return formatIssue(issue).replace(`${file}:`, '');
}
