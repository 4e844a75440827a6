import type { CaseResult } from './run-tests.ts';

/** The results in the form that CI systems read (JUnit XML). */
export function junitOf(cases: readonly CaseResult[]): string {
  const suites = Map.groupBy(cases, ({ suite }) => suite);
  const failed = (of: readonly CaseResult[]) => of.filter(({ differences }) => differences.length > 0).length;
  const lines = [
    '<?xml version="1.0" encoding="UTF-8"?>',
    `<testsuites name="leasehold policy test" tests="${cases.length}" failures="${failed(cases)}">`,
  ];
  for (const [suite, members] of suites) {
    lines.push(`  <testsuite name="${escape(suite)}" tests="${members.length}" failures="${failed(members)}">`);
    for (const one of members) {
      const head = `    <testcase classname="${escape(suite)}" name="${escape(one.name)}" file="${escape(one.file)}" line="${one.place.line}"`;
      if (one.differences.length === 0) {
        lines.push(`${head}/>`);
        continue;
      }
      const [first] = one.differences;
      const message = `${first!.field}: expected ${first!.expected}, got ${first!.got}`;
      const text = one.differences.map(
        ({ field, expected, got, place }) =>
          `${one.file}:${place.line}:${place.column}: ${field}: expected ${expected}, got ${got}`,
      );
      lines.push(
        `${head}>`,
        `      <failure message="${escape(message)}">${escape([...text, one.reason].join('\n'))}</failure>`,
        '    </testcase>',
      );
    }
    lines.push('  </testsuite>');
  }
  return `${[...lines, '</testsuites>'].join('\n')}\n`;
}

/** XML 1.0 §2.2: most control characters cannot stand in a document at all. */
function escape(text: string): string {
  return text

    .replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, '�')
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;');
}
